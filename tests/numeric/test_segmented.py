"""A decoder in pieces gives what it gives as a whole, to the bit, and says what ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx_ir as ir

from spq_graph.documents.checkpoint import Checkpoint
from spq_graph.documents.ranges import Ranges
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.observe import FINITE_CHECK, Observe
from spq_graph.passes.pieces.split import split
from spq_graph.runtime.measures.calibrate import Guard, Observed, collect_ranges
from spq_graph.runtime.sessions import segmented
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.runtime.sessions.session import Runner, execute_once
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import ActivationError, GraphError
from spq_graph.terms.segment import Segmented
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.graphs import Glu

SHAPES = {
    "plain": Decoder(layers=3, glu=Glu(width=32, inner=48)),
    "tied": Decoder(tied=True, capped=True, glu=Glu(width=32, inner=48)),
    "experts": Decoder(experts=3, routed=True),
    "grouped": Decoder(attention="GroupQueryAttention", kv_heads=1, glu=Glu(width=32, inner=48)),
}


@pytest.fixture(params=SHAPES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A decoder, with its weights beside it and without any value_info."""
    made = tmp_path / "model.onnx"
    ir.save(ir.from_proto(decoder(SHAPES[request.param])), made, external_data="model.bin")
    return made


def in_pieces(path: Path, limit: int) -> Segmented:
    graph = load_graph(path)
    Canonicalize()(graph)
    return split(graph, path, limit)


def rows(count: int, length: int = 6, seed: int = 0) -> Sequences:
    ids = np.random.default_rng(seed).integers(0, 16, (count, length))
    return Sequences(ids, np.ones_like(ids), 0, "random")


def test_columns_one_by_one_give_nearly_the_same(path: Path) -> None:
    some = rows(3)
    (found,) = SegmentedRunner(in_pieces(path, 1)).stream([(some.ids, some.mask)])
    np.testing.assert_allclose(found, Runner(path).logits(some.ids, some.mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [1 << 20, 9000, 4096])
def test_pieces_give_the_same_logits(path: Path, limit: int) -> None:
    some = rows(5)
    batches = [(some.ids[:3], some.mask[:3]), (some.ids[3:, :4], some.mask[3:, :4])]
    whole = Runner(path)
    found = SegmentedRunner(in_pieces(path, limit)).stream(batches)
    for logits, (ids, mask) in zip(found, batches, strict=True):
        np.testing.assert_array_equal(logits, whole.logits(ids, mask))


@pytest.mark.parametrize(
    ("limit", "side_by_side", "handed"), [(9000, 1, 0), (9000, 3, 12_000), (9000, 1, 1 << 28), (1 << 20, 3, 0)]
)
def test_rounds_change_nothing(
    path: Path, handed: int, side_by_side: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmented, "ROUND_TOKENS", 12)
    monkeypatch.setattr(segmented, "HANDED_BYTES", handed)
    batches = [(ids, mask) for ids, mask in rows(7).batches(1)]
    whole, steps = Runner(path), []
    model = in_pieces(path, limit)
    runner = SegmentedRunner(model, side_by_side=side_by_side)
    found = list(runner.results(batches, lambda done, total: steps.append((done, total))))
    total = len(batches) * len(model.segments)
    assert steps == [(done, total) for done in range(1, total + 1)]
    for (logits,), (ids, mask) in zip(found, batches, strict=True):
        np.testing.assert_array_equal(logits, whole.logits(ids, mask))


@pytest.mark.parametrize("side_by_side", [1, 3])
def test_rounds_grow_as_far_as_what_is_handed_over_has_room(
    path: Path, side_by_side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_pieces(path, 9000)
    opened: list[Any] = []
    open_it = segmented.open_segment

    def counted(*given: Any, **more: Any) -> Any:
        opened.append(more)
        return open_it(*given, **more)

    monkeypatch.setattr(segmented, "open_segment", counted)
    monkeypatch.setattr(segmented, "cores", lambda: 4)
    monkeypatch.setattr(segmented, "ROUND_TOKENS", 12)
    batches = [(ids, mask) for ids, mask in rows(7).batches(1)]
    for handed, rounds in ((0, 4), (1 << 28, 1)):  # of 12 tokens each; all at once
        monkeypatch.setattr(segmented, "HANDED_BYTES", handed)
        opened.clear()
        list(SegmentedRunner(model, side_by_side=side_by_side).results(batches))
        assert len(opened) == rounds * len(model.segments)
        assert opened[0] == {"threads": 0 if side_by_side == 1 else 2, "packed": True, "arena": True}


def test_a_product_that_is_mapped_is_neither_parted_nor_packed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_pieces(path, 64)  # bytes, which every product exceeds
    products = [segment for segment in model.segments if segment.size - segment.own > 64]
    assert products
    assert all(segment.wide for segment in products)
    own, size = (sum(getattr(segment, name) for segment in model.segments) for name in ("own", "size"))
    assert own < size / 2  # a tied head is transposed, and parted then
    opened: list[tuple[Any, Any]] = []
    open_it = segmented.open_segment

    def seen(segment: Any, *given: Any, **more: Any) -> Any:
        opened.append((segment, more["packed"]))
        return open_it(segment, *given, **more)

    monkeypatch.setattr(segmented, "open_segment", seen)
    list(SegmentedRunner(model).results(list(rows(1).batches(1))))
    assert all(packed is not segment.wide for segment, packed in opened)


def test_a_failure_in_one_of_several_batches_is_told(path: Path) -> None:
    some = rows(5)
    batches = [(ids, mask) for ids, mask in some.batches(1)]
    batches[2] = (batches[2][0] + 1000, batches[2][1])  # beyond the vocabulary
    stream = SegmentedRunner(in_pieces(path, 9000), side_by_side=2).results(batches)
    with pytest.raises(GraphError, match=r"batch of shape \(1, 6\)"):
        list(stream)


def test_pieces_say_what_ran(path: Path) -> None:
    ids = rows(1).ids
    whole, pieces = execute_once(path, ids), SegmentedRunner(in_pieces(path, 9000)).execute_once(ids)
    assert {k for k, v in whole.kernels.items() if v == "MatMul"} == {
        k for k, v in pieces.kernels.items() if v == "MatMul"
    }


def measure(path: Path, sequences: Sequences, limit: int, checkpoint: Checkpoint | None = None) -> Ranges:
    graph = load_graph(path)
    Canonicalize()(graph)
    values = [node.inputs[0].name or "" for node in graph.graph if node.op_type == "MatMul" and node.inputs[0]]
    observe = Observe(list(dict.fromkeys(values)))
    observe(graph)
    probes = [(p.value, p.outputs) for p in observe.probes]
    model = split(graph, path, limit)
    guard = Guard(lambda *_: ActivationError("an activation is NaN or infinite", where="there"))
    observed = Observed(model, probes, FINITE_CHECK, "digest")
    return collect_ranges(observed, sequences, guard, checkpoint=checkpoint)


def bytes_of(ranges: Ranges, folder: Path) -> bytes:
    ranges.save(folder / "r.json")
    return (folder / "r.json").read_bytes() + (folder / "r.safetensors").read_bytes()


@pytest.mark.parametrize("cores", [1, 4])
@pytest.mark.parametrize("limit", [9000, 1])
def test_ranges_depend_neither_on_the_limit_nor_on_cores(
    path: Path, tmp_path: Path, limit: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spq_graph.runtime.measures.calibrate.cores", lambda: 1)
    expected = bytes_of(measure(path, rows(5), 1 << 20), tmp_path)
    monkeypatch.setattr("spq_graph.runtime.measures.calibrate.cores", lambda: cores)
    monkeypatch.setattr("spq_graph.runtime.measures.calibrate.BATCH_TOKENS", 24)
    assert bytes_of(measure(path, rows(5), limit), tmp_path) == expected


class TestCheckpoint:
    @pytest.fixture
    def made(self, tmp_path: Path) -> Path:
        made = tmp_path / "model.onnx"
        ir.save(ir.from_proto(decoder(SHAPES["plain"])), made)
        return made

    @pytest.fixture(autouse=True)
    def _small_batches(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("spq_graph.runtime.measures.calibrate.BATCH_TOKENS", 48)  # batches of 12
        monkeypatch.setattr("spq_graph.runtime.sessions.segmented.ROUND_TOKENS", 24)

    def interrupted(self, made: Path, checkpoint: Checkpoint, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """A calibration that is interrupted when its next batch would be counted."""
        count = Ranges.count

        def counting(self: Ranges, ids: np.ndarray, mask: np.ndarray) -> None:
            nonlocal after
            after -= 1
            if after < 0:
                raise KeyboardInterrupt
            count(self, ids, mask)

        with monkeypatch.context() as patched:
            patched.setattr(Ranges, "count", counting)
            with pytest.raises(KeyboardInterrupt) as caught:
                measure(made, rows(9), 9000, checkpoint)
        assert "of 9 sequences were measured" in caught.value.__notes__[0]

    def test_goes_on_where_it_stopped(self, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = bytes_of(measure(made, rows(9), 9000), tmp_path)
        checkpoint = Checkpoint(tmp_path / "ranges.json")
        self.interrupted(made, checkpoint, 3, monkeypatch)
        kept = checkpoint.load("digest")
        assert kept is not None
        assert kept.sequences == 6
        ran: list[int] = []
        results = SegmentedRunner.results

        def counted(self: SegmentedRunner, batches: list, progress: object = None) -> object:
            ran.append(len(batches))
            return results(self, batches, progress)

        monkeypatch.setattr(SegmentedRunner, "results", counted)
        assert bytes_of(measure(made, rows(9), 9000, checkpoint), tmp_path) == expected
        assert ran == [2]  # of five batches of two rows, the last of one

    @pytest.mark.parametrize("other", [rows(9, seed=1), rows(9, length=5)])
    def test_other_data_start_anew(
        self, made: Path, tmp_path: Path, other: Sequences, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint = Checkpoint(tmp_path / "ranges.json")
        self.interrupted(made, checkpoint, 3, monkeypatch)
        found = measure(made, other, 9000, checkpoint)
        assert found.sequences == 9
        assert bytes_of(found, tmp_path) == bytes_of(measure(made, other, 9000), tmp_path)

    def test_what_is_cut_short_is_passed_over(self, tmp_path: Path) -> None:
        checkpoint = Checkpoint(tmp_path / "ranges.json")
        checkpoint.save(Ranges("digest", sequences=2))
        folder = tmp_path / "ranges.partial"
        (folder / "000000000009.json").write_text('{"schema": "spq-gr')
        found = checkpoint.load("digest")
        assert found is not None
        assert found.sequences == 2
        assert checkpoint.load("another") is None
        checkpoint.clear()
        assert not folder.exists()


def test_not_finite_is_named_in_pieces_too(path: Path) -> None:
    graph = load_graph(path)
    value = next(v for v in graph.graph.initializers.values() if v.const_value is not None and v.const_value.size > 64)
    array = value.const_value.numpy().copy()
    array[...] = np.nan
    value.const_value = ir.tensor(array, name=value.name)
    broken = path.with_name("broken.onnx")
    ir.save(graph, broken)
    with pytest.raises(ActivationError, match="NaN or infinite"):
        measure(broken, rows(2), 9000)
