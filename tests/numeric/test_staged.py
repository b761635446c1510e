"""A candidate that starts where it first differs says what it says from its first node on, to the bit."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx_ir as ir

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.logits import find_logits
from spq_graph.passes.pieces import stages
from spq_graph.passes.pieces.stages import cuts_of, staged
from spq_graph.runtime.sessions import segmented
from spq_graph.runtime.sessions import staged as staged_sessions
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.sessions.staged import Held, Origin
from spq_graph.terms.errors import SourceError
from spq_graph.terms.logits import Logits
from spq_graph.terms.segment import Cut
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.graphs import Glu

SHAPES = {
    "plain": Decoder(layers=4, glu=Glu(width=32, inner=48)),
    "tied": Decoder(layers=3, tied=True, capped=True, glu=Glu(width=32, inner=48)),
    "experts": Decoder(layers=3, experts=3, routed=True),
    "grouped": Decoder(layers=3, attention="GroupQueryAttention", kv_heads=1, glu=Glu(width=32, inner=48)),
}
IDS = np.random.default_rng(0).integers(0, 16, (4, 6))
BATCHES = [(IDS[:2], np.ones_like(IDS[:2])), (IDS[2:], np.ones_like(IDS[2:]))]


class Case:
    """A decoder in stages, with the batches run."""

    def __init__(self, path: Path, folder: Path | None = None, open_bytes: int | None = None) -> None:
        self.path = path
        self.graph = load_graph(path)
        Canonicalize()(self.graph)
        self.logits: Logits = find_logits(self.graph)
        self.output = self.logits.output or ""
        self.cuts: list[Cut] = cuts_of(self.graph, self.output)
        base = staged(self.graph.clone(), path, self.output, self.cuts)
        self.origin = Origin(base, self.logits, folder, open_bytes)
        self.said = list(self.origin.runner().stream(BATCHES))

    def changed(self, *places: float) -> ir.Model:
        """The graph with products' weights doubled: those of the places, from 0 to 1, among those with their own."""
        graph = self.graph.clone()
        operands = [n.inputs[1] for n in graph.graph if n.op_type == "MatMul"]
        own = [v for v in operands if v is not None and v.const_value is not None and len(v.uses()) == 1]
        for index in {round(place * (len(own) - 1)) for place in places}:
            weight = own[index]
            assert weight.const_value is not None
            weight.const_value = ir.tensor(2 * weight.const_value.numpy(), name=weight.name)
        return graph


@pytest.fixture(params=SHAPES)
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A decoder, with its weights beside it."""
    monkeypatch.setattr(stages, "LEAST_BYTES", 1)
    made = tmp_path / "model.onnx"
    ir.save(ir.from_proto(decoder(SHAPES[request.param])), made, external_data="model.bin")
    return made


def test_the_graph_in_stages_is_the_graph(path: Path) -> None:
    case = Case(path)
    assert len(case.origin.staged.stages) > 3
    whole = Runner(path)
    for logits, (ids, mask) in zip(case.said, BATCHES, strict=True):
        np.testing.assert_allclose(logits, whole.logits(ids, mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("open_bytes", [None, 0])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_it_starts_where_it_differs_and_says_the_same(path: Path, place: float, open_bytes: int | None) -> None:
    case = Case(path, open_bytes=open_bytes)
    candidate = staged(case.changed(place), path, case.output, case.cuts)
    runner = case.origin.beside(candidate)
    whole = Origin(candidate, case.logits, None).runner()  # which knows nothing, and begins at the first node
    for found, said, before in zip(runner.stream(BATCHES), whole.stream(BATCHES), case.said, strict=True):
        np.testing.assert_array_equal(found, said)
        assert not np.array_equal(found, before)


def test_the_later_it_differs_the_later_it_starts(path: Path) -> None:
    case = Case(path)
    graphs = (staged(case.changed(place), path, case.output, case.cuts) for place in (0.0, 0.5, 1.0))
    early, half, late = (case.origin.beside(graph).first for graph in graphs)
    count = len(case.origin.staged.stages)
    assert early <= 2
    assert count / 4 < half < count * 3 / 4
    assert half < late


def test_one_that_differs_in_nothing_runs_the_last_stage_alone(path: Path) -> None:
    case = Case(path)
    runner = case.origin.beside(staged(case.graph.clone(), path, case.output, case.cuts))
    assert runner.first == len(case.origin.staged.stages) - 1
    for found, said in zip(runner.stream(BATCHES), case.said, strict=True):
        np.testing.assert_array_equal(found, said)


def test_the_next_session_is_opened_while_a_stage_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(path)
    candidate = staged(case.changed(*np.linspace(0, 1, 99)), path, case.output, case.cuts)
    whole = Origin(candidate, case.logits, None).runner()  # which knows nothing of what stages hand over
    said = list(whole.stream(BATCHES))
    right, by_caller = segmented.open_segment, list[bool]()

    def open_segment(*given: Any, **named: Any) -> Any:
        by_caller.append(current_thread() is main_thread())
        return right(*given, **named)

    monkeypatch.setattr(segmented, "open_segment", open_segment)
    runner = case.origin.beside(candidate)
    for found, wanted in zip(runner.stream(BATCHES), said, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert by_caller[0]
    assert len(by_caller) > 3
    assert not any(by_caller[1:])


@pytest.mark.parametrize(("batches", "threads"), [(1, 0), (2, 1)])
def test_cores_that_have_no_batch_of_their_own_help_with_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, batches: int, threads: int
) -> None:
    case = Case(path)
    right, given = segmented.open_segment, set[int]()

    def open_segment(*arguments: Any, **named: Any) -> Any:
        given.add(named["threads"])  # 0 takes all cores
        return right(*arguments, **named)

    for module in (segmented, staged_sessions):
        monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.setattr(segmented, "open_segment", open_segment)
    runner = case.origin.beside(staged(case.changed(*np.linspace(0, 1, 99)), path, case.output, case.cuts))
    assert len(list(runner.stream(BATCHES[:batches]))) == batches
    assert given == {threads}


def test_a_session_that_cannot_be_opened_meanwhile_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(path)
    runner = case.origin.beside(staged(case.changed(*np.linspace(0, 1, 99)), path, case.output, case.cuts))
    right, given = segmented.open_segment, count()

    def open_segment(*arguments: Any, **named: Any) -> Any:
        if next(given) == 2:
            raise SourceError("it cannot be loaded")
        return right(*arguments, **named)

    monkeypatch.setattr(segmented, "open_segment", open_segment)
    with pytest.raises(SourceError, match="it cannot be loaded"):
        list(runner.stream(BATCHES))


def test_what_has_room_neither_in_memory_nor_on_disk_is_computed_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Held, "keep", lambda *_: None)
    case = Case(path)
    runner = case.origin.beside(staged(case.changed(1.0), path, case.output, case.cuts))
    assert runner.first == 0
    assert len(list(runner.stream(BATCHES))) == len(BATCHES)


def test_numbers_come_back_from_a_file_as_they_went_there(tmp_path: Path) -> None:
    held = Held(tmp_path, memory=0)
    arrays = [np.random.default_rng(n).normal(size=(n + 1, 7)).astype(np.float32) for n in range(3)]
    kept = [held.keep(array) for array in arrays]
    for array, back in zip(arrays, kept, strict=True):
        assert isinstance(back, np.memmap)
        np.testing.assert_array_equal(back, array)
    assert not list(tmp_path.iterdir())
    assert Held(None, memory=0).keep(arrays[0]) is None


def test_a_file_is_closed_with_what_keeps_arrays_in_it_and_its_numbers_stay(tmp_path: Path) -> None:
    held = Held(tmp_path, memory=0)
    array = np.arange(7, dtype=np.float32)
    kept, file = held.keep(array), held._file
    assert file is not None
    assert not file.closed
    del held
    gc.collect()
    assert file.closed
    np.testing.assert_array_equal(kept, array)


def test_what_several_threads_keep_in_one_file_does_not_mix(tmp_path: Path) -> None:
    held = Held(tmp_path, memory=0)
    arrays = [np.full(1000 + 17 * n + n % 7 * 20_000, n, dtype=np.float32) for n in range(200)]
    with ThreadPoolExecutor(4) as threads:
        kept = list(threads.map(held.keep, arrays))
    for array, back in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(back, array)


def test_what_is_mapped_from_a_file_stays_open_whatever_its_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session over floating-point weights in a file holds nothing for itself, but what it computes of them once."""
    monkeypatch.setattr(stages, "limit_for", lambda _: 256)  # bytes, which every product exceeds
    case = Case(path)
    stages_of = case.origin.staged.stages
    assert not any(stage.segment.codes for stage in stages_of)
    own, size = (sum(getattr(stage.segment, name) for stage in stages_of) for name in ("own", "size"))
    assert own < size / 2  # a tied head is transposed once, and kept
    small = Origin(case.origin.staged, case.logits, None, own)
    assert small.stay == {id(stage.segment) for stage in stages_of}


def test_sessions_that_stay_open_hold_no_arena(path: Path) -> None:
    sessions = Case(path).origin.sessions.values()
    assert sessions
    assert not any(session.get_session_options().enable_cpu_mem_arena for session in sessions)
