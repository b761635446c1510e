"""Choices that a cluster measures say what one process says of every one, and what is decided is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("distributed")

from spq_graph.documents.plan import Plan
from spq_graph.documents.recipe import Recipe
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import NotFiniteError
from spq_graph.terms.precision import Precision
from spq_graph.workbench import shared_meter
from spq_graph.workbench.cluster import Cluster
from spq_graph.workbench.meter import NO_PEELS, NO_SCALES
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import make_plan
from spq_graph.workbench.shared_meter import Decision
from spq_graph.workbench.steps import Steps
from tests.support.clusters import cluster
from tests.support.decoders import random_ids, write_decoder

IDS = random_ids(64, 32)
TEXT = Sequences(IDS, np.ones_like(IDS), 0, "text")
# Every site is a candidate, and none may be kept but some: each is measured alone.
RECIPE = Recipe(candidate_ratio=0.0, kl_budget=1e-6, sensitivity_tokens=1024, remedies={"peel": {"use": "never"}})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_decoder(tmp_path / "model.onnx", layers=3, spikes={1: 1000.0})


@pytest.fixture
def workers() -> Iterator[str]:
    with cluster(2) as made:
        yield made.scheduler_address


def decided(path: Path, address: str | None, recipe: Recipe) -> tuple[Plan, list[str]]:
    remarks: list[str] = []
    with Opening(path, dask=address).open(Steps(remark=remarks.append)) as bench:
        return make_plan(bench, recipe, 8, bench.calibrate(TEXT), TEXT), remarks


def same(found: Any, wanted: Any) -> bool:
    """Whether all is equal, and numbers but for what another order of sums changes in their last digits."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(found == (pytest.approx(wanted, rel=1e-4) if isinstance(wanted, float) else wanted))


def test_a_plan_is_that_of_one_process(model: Path, workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    spread = Cluster.spread

    def counted(self: Cluster, work: Any, shares: Any) -> Any:
        asked.extend(len(share.asked) for share in shares if work is shared_meter._measure)
        return spread(self, work, shares)

    monkeypatch.setattr(Cluster, "spread", counted)
    alone, _ = decided(model, None, RECIPE)
    assert asked == []
    shared, remarks = decided(model, workers, RECIPE)
    assert same(shared.to_dict(), alone.to_dict())
    assert sum(asked) == alone.search.candidates > shared_meter.SHARE
    assert len(asked) > 1
    assert remarks == []
    assert shared_meter._held == {}  # what workers held open for it is closed


def test_choices_are_scored_as_here_with_their_errors(model: Path, workers: str) -> None:
    with Opening(model, dask=workers).open() as bench:
        decision = Decision(TEXT, RECIPE, bench.calibrate(TEXT), None)
        with shared_meter.shared_meter(bench, decision, lambda _: None) as found:
            choices = [({site.key: Precision.INT8},) for site in bench.found.sites if site.role.value != "lm_head"]
            together = found.alone.kl_of_all(choices)
            errors = [found.alone.stderr(*one) for one in choices]
            assert together == [found.alone.kl(*one) for one in choices]
            assert errors == [found.alone.stderr(*one) for one in choices]
            assert found.alone.kl_of_all(choices[:2]) is None  # not worth the pass that every worker needs first


def test_a_worker_with_less_room_leaves_it_to_this_process(
    model: Path, workers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_meter, "_measure", lambda _: None)
    assert same(decided(model, workers, RECIPE)[0].to_dict(), decided(model, None, RECIPE)[0].to_dict())


def test_what_is_not_finite_comes_back_as_such(model: Path, workers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no failure of a worker: the share is not tried again, and the choice is known to be out of the question."""
    broken = "layers.0.mlp.up_proj"
    score = shared_meter.Gauge.score

    def breaking(self: Any, precisions: Any, peels: Any = NO_PEELS, scales: Any = NO_SCALES) -> Any:
        if set(precisions) == {broken}:
            raise NotFiniteError("not finite", where="here", remedy="keep it")
        return score(self, precisions, peels, scales)

    monkeypatch.setattr(shared_meter.Gauge, "score", breaking)
    with Opening(model, dask=workers).open() as bench:
        decision = Decision(TEXT, RECIPE, bench.calibrate(TEXT), None)
        with shared_meter.shared_meter(bench, decision, lambda _: None) as found:
            choices = [({site.key: Precision.INT8},) for site in bench.found.sites if site.role.value != "lm_head"]
            together = found.alone.kl_of_all(choices)
    assert together is not None
    [error] = [one for one in together if isinstance(one, NotFiniteError)]
    assert (error.what, error.where, error.remedy) == ("not finite", "here", "keep it")
    assert together.index(error) == next(n for n, (one,) in enumerate(choices) if broken in one)


@pytest.mark.parametrize(("asked", "workers", "worth"), [(21, 2, True), (16, 2, False), (100, 1, False), (11, 4, True)])
def test_what_is_worth_a_pass_on_every_worker(asked: int, workers: int, worth: bool) -> None:
    assert shared_meter._worth(asked, workers) is worth
