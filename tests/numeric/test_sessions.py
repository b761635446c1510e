"""Sessions are what costs memory: no more are opened than run something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spq_graph.views.words import integer_kernels

pytest.importorskip("onnxruntime")

import onnxruntime as ort

from spq_graph.documents.recipe import Recipe
from spq_graph.models.source import resolve
from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.find.quantized import identify_floating
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.precision import Precision
from spq_graph.workbench.looked import Looked
from spq_graph.workbench.planning import make_plan
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench
from tests.support.decoders import random_ids, write_decoder


def opened(path: Path, work: Path) -> Workbench:
    """A workbench that outlives its block, whose files lie in a folder of the test."""
    source, found = resolve(str(path)), prepared(path)
    return Workbench(source, work, Steps(), path, looked=Looked(found, identify_floating(found.graph)))


@pytest.mark.parametrize("fixed", [None, (2, 40)])
def test_what_the_graph_says_of_itself_is_what_a_session_says(tmp_path: Path, fixed: tuple[int, int] | None) -> None:
    path = write_decoder(tmp_path / "decoder.onnx", fixed=fixed)
    told, runner = opened(path, tmp_path).decoder, Runner(path)
    assert not isinstance(told, Runner)
    assert (told.fixed_shape, told.vocabulary) == (runner.fixed_shape, runner.vocabulary)
    ids = random_ids(2, 40)
    found, wanted = told.token_feeds(ids, np.ones_like(ids)), runner.token_feeds(ids, np.ones_like(ids))
    assert {name: array.dtype for name, array in found.items()} == {name: a.dtype for name, a in wanted.items()}


def test_by_ratio_there_is_one_session_to_calibrate_and_one_to_prove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    create = ort.InferenceSession

    def counting(*given: object, **named: object) -> object:
        made.append(given)
        return create(*given, **named)

    monkeypatch.setattr(ort, "InferenceSession", counting)
    ids = random_ids(4, 16)
    np.savez(tmp_path / "ids.npz", input_ids=ids)
    bench = opened(write_decoder(tmp_path / "decoder.onnx"), tmp_path)
    ranges = bench.calibrate(bench.sequences(tmp_path / "ids.npz"))
    plan = make_plan(bench, Recipe(spike_ratio=100.0), 8, ranges, None)
    integers = sum(site.precision is Precision.INT8 for site in plan.sites)
    assert integer_kernels(bench.prove(bench.build(plan), plan).ops) == integers > 0
    assert len(made) == 2
