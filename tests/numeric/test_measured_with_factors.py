"""A single site measured where channels have factors: beside the source with the same, what is in front is not run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.decisions.choices import start
from spq_graph.decisions.smoothing import Smoothing
from spq_graph.documents.changes import Scale
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.treatment import tried
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.base.stock import Stock
from spq_graph.passes.pieces import stages
from spq_graph.runtime.sessions.staged import Origin, StagedRunner
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.workbench.beside import Beside
from spq_graph.workbench.meter import meter, skeleton
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import absorbers_of
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench
from tests.support.decoders import random_ids, write_decoder

IDS = random_ids(64, 32)
TEXT = Sequences(IDS, np.ones_like(IDS), 0, "text")
RECIPE = Recipe(sensitivity_tokens=1024)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    with Opening(write_decoder(tmp_path / "model.onnx", layers=4)).open(Steps()) as opened:
        yield opened


def factors(bench: Workbench, ranges: Ranges) -> dict[str, Scale]:
    choices = {s.key: start(s, Precision.FP32, ranges.values.get(s.input), RECIPE) for s in bench.found.every}
    found = Smoothing(choices, RECIPE, absorbers_of(bench)).by_hand()
    assert len(found) == 4  # behind every GLU
    return found


def test_figures_are_those_beside_the_source_and_fewer_stages_are_run(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges, firsts = bench.calibrate(TEXT), list[int]()
    scales, beside = factors(bench, ranges), Origin.beside

    def noted(self: Origin, candidate: Any) -> StagedRunner:
        runner = beside(self, candidate)
        firsts.append(runner.first)
        return runner

    monkeypatch.setattr(stages, "LEAST_BYTES", 1 << 12)
    monkeypatch.setattr(Origin, "beside", noted)
    sites = [s.key for s in bench.found.sites if not s.left_alone(quantize_lm_head=False)]

    def kls() -> list[float]:
        alone = meter(bench, TEXT, RECIPE, ranges, lambda _: None).alone
        return [alone.kl({key: Precision.INT8}, {}, scales) for key in sites]

    quick, begun = kls(), firsts.copy()
    firsts.clear()
    monkeypatch.setattr(Beside, "origin_of", lambda *_: None)
    assert quick == kls()
    assert sum(firsts) < sum(begun)


@pytest.mark.parametrize("precision", [Precision.W8A8_TOKEN, Precision.W8FP8A16], ids=str)
def test_operators_of_ours_in_one_layer_leave_the_stages_in_front_of_it_as_they_are(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    ranges, found, beside = bench.calibrate(TEXT), list[tuple[int, int]](), Origin.beside

    def noted(self: Origin, candidate: Any) -> StagedRunner:
        runner = beside(self, candidate)
        alike = [stage.same_as(mine) for stage, mine in zip(candidate.stages, self.staged.stages, strict=True)]
        found.append((runner.first, alike.count(False)))
        return runner

    monkeypatch.setattr(stages, "LEAST_BYTES", 1 << 12)
    monkeypatch.setattr(Origin, "beside", noted)
    downs = [s.key for s in bench.found.sites if s.role is Role.GLU_DOWN]
    alone = meter(bench, TEXT, RECIPE, ranges, lambda _: None).alone
    kls = [alone.kl({key: precision}) for key in downs]
    assert all(kl > 0 for kl in kls)
    assert [differing for _, differing in found] == [1] * len(downs)
    firsts = [first for first, _ in found]
    assert firsts == sorted(set(firsts))  # the later the layer the later it begins


def test_graphs_with_the_same_factors_have_the_same_constants(bench: Workbench) -> None:
    ranges, stock = bench.calibrate(TEXT), Stock()
    scales, base = factors(bench, ranges), skeleton(bench, ranges, RECIPE)
    plan = base.with_treatments(tried([s.site for s in base.sites], scales))
    one, other, apart = (
        apply_plan(bench.prepared, plan, RECIPE.profile.emulation, measured=True, stock=held)
        for held in (stock, stock, Stock())
    )
    for scale in scales.values():
        held = [graph.graph.initializers[scale.tensor].const_value for graph in (one, other, apart)]
        assert held[0] is held[1]
        assert held[0] is not held[2]
        assert np.array_equal(held[0].numpy(), held[2].numpy())
