"""Logits some tokens at a time: the same as all at once, of every kind of runner, and no more of them at hand."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx_ir as ir

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.pieces.split import split
from spq_graph.runtime.measures.asked import Stream, behind_every, columns_of
from spq_graph.runtime.measures.evaluate import score_text
from spq_graph.runtime.measures.kl_meter import KlMeter
from spq_graph.runtime.measures.said import Said
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.segment import Segmented
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.decoders import VOCABULARY, random_ids, write_decoder
from tests.support.graphs import Glu


def in_pieces(path: Path, limit: int) -> Segmented:
    graph = load_graph(path)
    Canonicalize()(graph)
    return split(graph, path, limit)


def rows(count: int, length: int = 6) -> Sequences:
    ids = np.random.default_rng(0).integers(0, 16, (count, length))
    return Sequences(ids, np.ones_like(ids), 0, "random")


# The head is the largest product, as in every model.
LARGE = {
    "plain": Decoder(layers=3, glu=Glu(width=32, inner=48), vocab=400),
    "tied and capped": Decoder(tied=True, capped=True, glu=Glu(width=32, inner=48), vocab=400),
    "grouped": Decoder(attention="GroupQueryAttention", kv_heads=1, glu=Glu(width=32, inner=48), vocab=400),
}


@pytest.mark.parametrize("columns", [1, 4, 6, 9])
@pytest.mark.parametrize("side_by_side", [1, 2])
@pytest.mark.parametrize("shape", LARGE)
def test_logits_some_tokens_at_a_time(shape: str, side_by_side: int, columns: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(ir.from_proto(decoder(LARGE[shape])), path, external_data="model.bin")
    cut = in_pieces(path, 4 * 32 * 400)
    assert cut.segments[-1].tokenwise
    runner = SegmentedRunner(cut, side_by_side=side_by_side)
    batches = [(ids, mask) for ids, mask in rows(3, 9).batches(1)]
    parts = list(runner.stream(batches, columns))
    assert [part.shape[1] for part in parts] == [min(columns, 9 - start) for start in range(0, 9, columns)] * 3
    for number, (ids, mask) in enumerate(batches):
        each = len(parts) // 3
        found = np.concatenate(parts[number * each : (number + 1) * each], axis=1)
        np.testing.assert_allclose(found, Runner(path).logits(ids, mask), rtol=1e-4, atol=1e-5)


def test_columns_that_only_fill_a_fixed_shape_are_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    ir.save(ir.from_proto(decoder(LARGE["plain"])), path, external_data="model.bin")
    batches = [(ids, mask) for ids, mask in rows(3, 5).batches(1)]
    runner = SegmentedRunner(in_pieces(path, 4 * 32 * 400))
    monkeypatch.setattr(SegmentedRunner, "fixed_shape", (2, 11))
    parts = list(runner.stream(batches, 3))
    assert [part.shape[:2] for part in parts] == [(1, 3), (1, 2)] * 3
    for number, (ids, mask) in enumerate(batches):
        found = np.concatenate(parts[2 * number : 2 * number + 2], axis=1)
        np.testing.assert_allclose(found, Runner(path).logits(ids, mask), rtol=1e-4, atol=1e-5)


def test_what_is_not_cut_at_the_head_gives_its_logits_in_parts_all_the_same(tmp_path: Path) -> None:
    path = write_decoder(tmp_path / "model.onnx")
    batches = [(ids, mask) for ids, mask in rows(2, 7).batches(1)]
    whole = Runner(path)
    for stream in (whole, SegmentedRunner(in_pieces(path, 1 << 20))):
        parts = list(stream.stream(batches, 3))
        assert [part.shape[1] for part in parts] == [3, 3, 1] * 2
        np.testing.assert_array_equal(np.concatenate(parts[:3], axis=1), whole.logits(*batches[0]))


def test_steps_are_counted_by_batch_however_many_parts_it_has(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(ir.from_proto(decoder(LARGE["plain"])), path, external_data="model.bin")
    cut, steps = in_pieces(path, 4 * 32 * 400), []
    found = SegmentedRunner(cut).results(list(rows(2).batches(1)), lambda *of: steps.append(of), 2)
    total = 2 * len(cut.segments)
    assert (len(list(found)), steps) == (6, [(done, total) for done in range(1, total + 1)])


def test_no_part_is_held_while_the_next_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    ir.save(ir.from_proto(decoder(LARGE["plain"])), path, external_data="model.bin")
    cut = in_pieces(path, 4 * 32 * 400)
    given: list[weakref.ref[Any]] = []
    alive: list[int] = []
    run = SegmentedRunner._run

    def watched(self: SegmentedRunner, session: Any, segment: Any, batch: Any) -> dict[str, Any]:
        alive.append(sum(one() is not None for one in given))
        found = run(self, session, segment, batch)
        if segment is cut.segments[-1]:
            given.extend(weakref.ref(array) for array in found.values())
        return found

    monkeypatch.setattr(SegmentedRunner, "_run", watched)
    stream = SegmentedRunner(cut).stream(list(rows(2).batches(1)), 2)
    for _ in range(6):
        next(stream)
    assert len(given) == 6
    assert set(alive) == {0}


@pytest.fixture(params=["one session", "in pieces"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Stream, Stream]:
    """Two models over the same vocabulary."""
    opened: list[Stream] = []
    for seed in range(2):
        path = write_decoder(tmp_path / f"{seed}.onnx", layers=2, seed=seed)
        opened.append(Runner(path) if request.param == "one session" else SegmentedRunner(in_pieces(path, 9000)))
    return opened[0], opened[1]


def ragged() -> Sequences:
    lengths = np.array([11, 2, 8, 11, 5])
    mask = (np.arange(11) < lengths[:, None]).astype(np.int64)
    return Sequences(random_ids(5, 11, seed=2) * mask, mask, 1, "ragged")


@pytest.mark.parametrize("columns", [1, 3, 10])
def test_scores_are_the_same_however_many_tokens_at_a_time(
    pair: tuple[Stream, Stream], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, other = pair
    usual, (expected,) = score_text(base, [other], ragged())
    kl = KlMeter(base, ragged()).score(other)
    monkeypatch.setattr("spq_graph.runtime.measures.asked.LOGITS_BYTES", 4 * VOCABULARY * 5 * columns)
    said = Said(None)
    for _ in range(2):
        found, (score,) = score_text(base, [other], ragged(), said=said)
        for one, wanted in ((found, usual), (score, expected)):
            assert (one.tokens, one.agreed) == (wanted.tokens, wanted.agreed)
            assert list(one.windows) == list(wanted.windows)
            figures = [(one.nll, one.kl, one.nll_stderr, one.kl_stderr) for one in (one, wanted)]
            assert figures[0] == pytest.approx(figures[1], rel=1e-5, abs=1e-9)
    again = KlMeter(base, ragged()).score(other)
    assert (again.tokens, again.kl, again.kl_stderr) == pytest.approx((kl.tokens, kl.kl, kl.kl_stderr), rel=1e-4)


def test_a_large_vocabulary_is_asked_of_few_tokens_at_a_time(pair: tuple[Stream, Stream]) -> None:
    whole = behind_every(np.zeros((1, 2048), np.int64), np.ones((1, 2048), np.int64), 1)
    model = pair[0]
    assert columns_of(model, [whole]) is None
    assert columns_of(cast(Stream, SimpleNamespace(vocabulary=151_936)), [whole]) == 172
    assert columns_of(cast(Stream, SimpleNamespace(vocabulary=None)), [whole]) is None
