"""Outlier branches in the rule `auto`: when they come, of how many channels, and what is kept beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from spq_graph.decisions.decide import decide
from spq_graph.documents.changes import Peel
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.treatment import Cause
from spq_graph.documents.value_range import ValueRange
from spq_graph.terms.held import Held
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from tests.support.deciding import MODEL, kept, site

CHANNELS = 128
MANY = [f"s{n}" for n in range(10)]


def seen(outliers: Mapping[int, float], usual: float = 1.0) -> ValueRange:
    """Channels of the usual size, but for these; their outliers on one token of 100."""
    high = np.full(CHANNELS, usual, np.float32)
    for channel, size in outliers.items():
        high[channel] = size
    maxima = np.full((1, 100), usual, dtype=np.float32)
    maxima[0, 3] = high.max()
    ids, mask = np.full((1, 100), 7), np.ones((1, 100), dtype=np.int64)
    return ValueRange.observe(-maxima, maxima, (-high, high), ids, mask)


class Rounding:
    """KL is the sum over sites of what each costs by the square of the width that its quantizer covers."""

    def __init__(self, ranges: Ranges, costs: Mapping[str, float]) -> None:
        self.ranges, self.costs, self.asked = ranges, costs, 0

    def __call__(self, precisions: Mapping[str, Precision], peels: Mapping[str, Peel] | None = None) -> float:
        self.asked += 1
        widths = {k: self.width(f"in_{k}", peels or {}) for k, p in precisions.items() if p.takes_branch}
        return math.fsum(self.costs[key] * width**2 for key, width in widths.items())

    def width(self, value: str, peels: Mapping[str, Peel]) -> float:
        whole, peel = self.ranges.values[value], peels.get(value)
        return whole.high - whole.low if peel is None else peel.high - peel.low


def made(
    values: Mapping[str, ValueRange], costs: Mapping[str, float], kind: type[Rounding] = Rounding, **recipe: object
) -> tuple[Plan, Rounding]:
    sites = [site(key) for key in values]
    sites = [Site(key=s.key, node=s.node, role=s.role, layer=0, shape=(CHANNELS, 4), input=s.input) for s in sites]
    ranges = Ranges("sha256:0", {f"in_{key}": value for key, value in values.items()}, tokens=100, sequences=1)
    measure = kind(ranges, costs)
    wanted = Recipe.model_validate({"kl_budget": 0.01, "scales": "static", **recipe})
    plan = decide(sites, ranges, wanted, MODEL, measure=measure)
    return plan, measure


def everywhere_an_outlier(count: int) -> dict[str, ValueRange]:
    """Ten sites; each has so many outlier channels, of 100 times the usual size."""
    return {key: seen({n + 5 * c: 100.0 for c in range(count)}) for n, key in enumerate(MANY)}


COSTS = dict.fromkeys(MANY, 1e-4)


def test_a_model_that_few_kept_sites_make_whole_has_none() -> None:
    values = {key: seen({3: 300.0} if key == "s4" else {}) for key in MANY}
    plan, _ = made(values, COSTS)
    assert kept(plan) == {"s4"}
    assert plan.treatments == []
    assert plan.search.kl_peeled is None


def test_where_more_than_the_cap_spike_branches_make_it_whole() -> None:
    plan, measure = made(everywhere_an_outlier(3), COSTS)
    assert not kept(plan)
    assert plan.budget_met
    assert {len(t.changes[0].channels) for t in plan.treatments} == {4}  # of 4, 16 and 64 the first that is enough
    assert set(plan.search.kl_peeled or {}) == {"4"}
    assert all(t.applied and t.reason is Cause.BUDGET and t.narrower == 100.0 for t in plan.treatments)
    assert [t.sites for t in plan.treatments] == [(key,) for key in MANY]
    assert plan.search.kl == pytest.approx(measure({s.key: s.precision for s in plan.sites}, plan.peels), rel=1e-5)
    assert all(set(peel.channels) >= {n, n + 5, n + 10} for n, peel in enumerate(plan.peels.values()))


def test_as_many_channels_as_it_takes_and_no_more_where_fewer_will_do() -> None:
    values = everywhere_an_outlier(3) | {"s0": seen({2 * n: 100.0 for n in range(10)})}
    plan, _ = made(values, COSTS)
    assert {t.sites[0]: len(t.changes[0].channels) for t in plan.treatments} == dict.fromkeys(MANY, 4) | {"s0": 16}
    assert set(plan.search.kl_peeled or {}) == {"4", "16"}
    assert plan.budget_met


def test_what_branches_do_not_mend_is_kept_beside_them() -> None:
    values = everywhere_an_outlier(3) | {"s7": seen({}, usual=40.0)}  # wide in every channel
    plan, _ = made(values, COSTS)
    assert kept(plan) == {"s7"}
    assert plan.budget_met
    assert "in_s7" not in plan.peels
    assert len(plan.peels) == 9


def test_a_branch_that_nobody_reads_in_integers_is_refused_with_the_reason() -> None:
    values = everywhere_an_outlier(3)
    costs = COSTS | {"s7": 1.0}  # beside its branch it costs too much all the same
    plan, _ = made(values, costs)
    assert kept(plan) == {"s7"}
    refused = [t for t in plan.treatments if not t.applied]
    assert [(t.sites, t.reason) for t in refused] == [(("s7",), Cause.NOT_NEEDED)]
    assert "in_s7" not in plan.peels


def test_never_and_always() -> None:
    values = everywhere_an_outlier(3)
    never, _ = made(values, COSTS, remedies={"peel": {"use": "never"}})
    assert never.treatments == []
    assert not never.budget_met
    few = {key: seen({3: 300.0} if key == "s4" else {}) for key in MANY}
    always, _ = made(few, COSTS, remedies={"peel": {"use": "always"}})
    assert not kept(always)
    assert [(t.sites, t.reason) for t in always.treatments] == [(("s4",), Cause.OVERRIDE)]
    assert always.budget_met


def test_by_hand_without_measuring_as_many_channels_as_are_allowed() -> None:
    values = everywhere_an_outlier(3)
    sites = [Site(key=k, node=k, role=site(k).role, layer=0, shape=(CHANNELS, 4), input=f"in_{k}") for k in values]
    ranges = Ranges("sha256:0", {f"in_{key}": value for key, value in values.items()}, tokens=100, sequences=1)
    recipe = Recipe.model_validate({"spike_ratio": 1e6, "remedies": {"peel": {"use": "always", "channels": [8, 2]}}})
    plan = decide(sites, ranges, recipe, MODEL)
    assert {len(t.changes[0].channels) for t in plan.treatments} == {8}
    assert decide(sites, ranges, Recipe(spike_ratio=1e6), MODEL).treatments == []


def test_branches_that_win_nothing_are_not_taken() -> None:
    values = {key: seen({}, usual=40.0) for key in MANY}  # no channel sticks out
    plan, _ = made(values, COSTS)
    assert plan.treatments == []
    assert plan.search.kl_peeled is None


class Formats(Rounding):
    """The same; in FP8 a kept site costs something as well, and in other formats nothing."""

    def __call__(self, precisions: Mapping[str, Precision], peels: Mapping[str, Peel] | None = None) -> float:
        return super().__call__(precisions, peels) + 0.002 * sum(p.is_fp8 for p in precisions.values())


def test_beside_branches_the_format_comes_before_the_number_of_sites() -> None:
    """Keeping two sites in a small format meets the budget but not the aim, keeping them as they are both."""
    values = everywhere_an_outlier(3) | {key: seen({}, usual=40.0) for key in ("s7", "s8")}
    sites = [Site(key=k, node=k, role=site(k).role, layer=0, shape=(CHANNELS, 4), input=f"in_{k}") for k in values]
    ranges = Ranges("sha256:0", {f"in_{key}": value for key, value in values.items()}, tokens=100, sequences=1)
    recipe = Recipe(kl_budget=0.0085, max_kept=0.2)
    plan = decide(sites, ranges, recipe, MODEL, measure=Formats(ranges, COSTS))
    assert kept(plan) == {"s7", "s8"}
    assert {s.precision.is_fp8 for s in plan.kept} == {False}  # w8a8_block costs nothing here, and is as fast
    assert plan.search.formats is not None
    assert plan.search.formats["fp8_e4m3"] == pytest.approx(plan.search.formats["as_is"] + 0.004, rel=1e-3)
    assert plan.budget_met


class ByToken(Rounding):
    """The same; by token every kept site costs a little, and any other format nothing."""

    def __call__(self, precisions: Mapping[str, Precision], peels: Mapping[str, Peel] | None = None) -> float:
        tokens = sum(p is Precision.W8A8_TOKEN for p in precisions.values())
        static = {key: p for key, p in precisions.items() if p is not Precision.W8A8_TOKEN}
        return super().__call__(static, peels) + 0.00002 * tokens


@pytest.mark.parametrize(
    ("budget", "precision", "met"),
    [
        (0.0035, Precision.W8A8_TOKEN, True),
        (0.00285, Precision.FP8_E4M3, True),
        (0.002, Precision.W8A8_TOKEN, False),  # nothing meets it, and this gives little of what is won away
    ],
)
def test_beside_branches_integers_by_token_come_before_what_is_more_exact(
    budget: float, precision: Precision, met: bool
) -> None:
    """As many of them as may be, though the budget is met and its margin is not: they take what integers take."""
    values = everywhere_an_outlier(3) | {key: seen({}, usual=2.0) for key in ("s7", "s8")}
    plan, _ = made(values, COSTS, ByToken, kl_budget=budget, max_kept=0.3)
    assert {(s.precision, s.reason.value) for s in plan.kept} == {(precision, "spike")}
    assert len(plan.kept) == 3
    assert plan.search.formats is not None
    assert plan.search.formats["w8a8_token"] > plan.search.formats["fp8_e4m3"]
    assert plan.budget_met is met


@pytest.mark.parametrize(("outliers", "precision"), [(3, Precision.W8A8_TOKEN), (0, Precision.W8A8_BLOCK)])
def test_beside_branches_the_head_is_tried_by_token_first(outliers: int, precision: Precision) -> None:
    head = Site(key="head", node="head", role=Role.LM_HEAD, layer=None, shape=(CHANNELS, 1000), input="in_head")
    values = {**everywhere_an_outlier(outliers), "head": seen({})}
    sites = [head if key == "head" else site(key) for key in values]
    ranges = Ranges("sha256:0", {f"in_{key}": value for key, value in values.items()}, tokens=100, sequences=1)
    recipe, held = Recipe(kl_budget=0.008, scales="static"), {"head": Held("W", 512_000, 136_000)}
    plan = decide(sites, ranges, recipe, MODEL, held=held, measure=ByToken(ranges, COSTS))
    assert bool(plan.treatments) is bool(outliers)
    assert next(s.precision for s in plan.sites if s.site.key == "head") is precision
