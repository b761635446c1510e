"""Scales by token in the rule `auto`: when all sites get them, and when none does."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from spq_graph.decisions.decide import decide
from spq_graph.documents.changes import Peel
from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from tests.support.deciding import MODEL, TEN, Additive, kept, make, run, site
from tests.unit.decisions.test_by_kl_branches import COSTS, MANY, Rounding, everywhere_an_outlier

TOKEN = Precision.W8A8_TOKEN
FLAT = dict.fromkeys(TEN, 0.1)


def precisions(plan: Plan) -> set[Precision]:
    return {s.precision for s in plan.sites}


def test_what_few_kept_sites_make_whole_stays_static() -> None:
    plan, measure = run(TEN | {"s3": 0.5}, Recipe(), formats={TOKEN: 0.0})
    assert kept(plan) == {"s3"}
    assert plan.search.kl_by_token is None
    assert not any(set(asked.values()) == {TOKEN} and len(asked) == len(TEN) for asked in measure.asked)


def test_where_the_cap_does_not_suffice_all_are_by_token_and_none_is_kept() -> None:
    plan, _ = run(FLAT, Recipe(max_kept=0.2), formats={TOKEN: 0.0001})
    assert precisions(plan) == {TOKEN}
    assert not plan.kept
    assert plan.budget_met
    assert plan.search.kl == plan.search.kl_by_token == pytest.approx(0.001)
    assert {s.reason for s in plan.sites} == {Reason.DEFAULT}
    assert all("2 kept sites, the most that may be" in (s.evidence.note or "") for s in plan.sites)
    assert all(s.evidence.kl is None for s in plan.sites)  # of a static scale that nothing has


def test_where_they_miss_the_budget_too_everything_is_static() -> None:
    plan, _ = run(FLAT, Recipe(max_kept=0.2), formats={TOKEN: 0.05, Precision.FP8_E4M3: 0.2})
    assert {s.precision for s in plan.sites if not s.kept} == {Precision.INT8}
    assert plan.search.kl_by_token == pytest.approx(0.5)
    assert len(plan.kept) == 2
    assert not plan.budget_met


@pytest.mark.parametrize(("few", "asked"), [(0.0099, True), (0.0101, False)])
def test_what_few_tokens_put_far_beyond_the_budget_is_not_measured_on_all(few: float, asked: bool) -> None:
    sites, ranges = make(dict.fromkeys(TEN, 50.0) | {"no candidate": 2.0})
    whole = Additive(FLAT, {TOKEN: 0.0001})
    decide(sites, ranges, Recipe(max_kept=0.2, kl_budget=0.005), MODEL, measure=whole, alone=lambda precisions: few)
    assert ({"no candidate": Precision.INT8} in whole.asked) is asked


@pytest.mark.parametrize(
    "recipe",
    [{"scales": "static"}, {"bits": 7}, {"target": "portable"}, {"high_precision": "fp16"}, {"use": "prefill"}],
)
def test_who_may(recipe: Mapping[str, object]) -> None:
    plan, _ = run(FLAT, Recipe.model_validate({"max_kept": 0.2, **recipe}), formats={TOKEN: 0.0001})
    assert (plan.search.kl_by_token is not None) is ("use" in recipe)


def test_sites_by_hand_stay_as_they_were_asked_for() -> None:
    more = site("lm_head", Role.LM_HEAD)
    plan, _ = run(FLAT, Recipe(keep=("s1",), ignore=("s2",), max_kept=0.3), more, formats={TOKEN: 0.0001})
    by_key = {s.key: s.precision for s in plan.sites}
    assert {key for key, precision in by_key.items() if precision is TOKEN} == set(FLAT) - {"s1", "s2"}
    assert by_key["lm_head"] is by_key["s2"] is Precision.FP32


class ByToken(Rounding):
    """As `Rounding`, and so many times less by token."""

    def __init__(self, ranges: Ranges, times: float) -> None:
        super().__init__(ranges, COSTS)
        self.times = times

    def __call__(self, precisions: Mapping[str, Precision], peels: Mapping[str, Peel] | None = None) -> float:
        parts = [super(ByToken, self).__call__({key: p}, peels) for key, p in precisions.items()]
        scaled = (
            part / (self.times if p is TOKEN else 1.0) for part, p in zip(parts, precisions.values(), strict=True)
        )
        return math.fsum(scaled)


def branched(times: float, **recipe: object) -> Plan:
    values = everywhere_an_outlier(3)
    sites = [Site(key=k, node=k, role=Role.GLU_DOWN, layer=0, shape=(128, 4), input=f"in_{k}") for k in values]
    ranges = Ranges("sha256:0", {f"in_{key}": value for key, value in values.items()}, tokens=100, sequences=1)
    given = Recipe.model_validate({"kl_budget": 0.01, **recipe})
    return decide(sites, ranges, given, MODEL, measure=ByToken(ranges, times))


@pytest.mark.parametrize(("times", "branches"), [(1.0, True), (1e6, False)])
def test_branches_come_where_they_alone_do_not_suffice(times: float, branches: bool) -> None:
    plan = branched(times)
    assert precisions(plan) == {TOKEN}
    assert bool(plan.peels) is branches
    assert plan.budget_met


@pytest.mark.parametrize(
    "recipe", [{}, {"kl_budget": 0.005, "kl_margin": 0.0}, {"remedies": {"peel": {"use": "never"}}}]
)
def test_where_they_do_not_help_the_plan_is_that_of_static_scales(recipe: Mapping[str, object]) -> None:
    tried, static = branched(1e-3, **recipe), branched(1e-3, **recipe, scales="static")
    assert tried.search.kl_by_token is not None
    assert (tried.sites, tried.treatments) == (static.sites, static.treatments)
    told = {"kl_by_token", "evaluations", "formats"}
    assert tried.search.model_dump(exclude=told) == static.search.model_dump(exclude=told)


def test_always_gives_branches_and_never_gives_none() -> None:
    always, never = (branched(1e6, remedies={"peel": {"use": use}}) for use in ("always", "never"))
    assert len(always.peels) == len(MANY)
    assert not never.treatments
    assert precisions(always) == precisions(never) == {TOKEN}


def test_by_token_from_the_start() -> None:
    sites, ranges = make(dict.fromkeys(TEN, 40.0))
    plan = decide(
        sites, ranges, Recipe(scales="by_token"), MODEL, measure=lambda p: 1.0 if set(p.values()) != {TOKEN} else 0.0
    )
    assert precisions(plan) == {TOKEN}
    assert plan.search.kl_by_token is None
    unmeasured = decide(sites, ranges, Recipe(scales="by_token", spike_ratio=2.0), MODEL)
    assert precisions(unmeasured) == {TOKEN}
