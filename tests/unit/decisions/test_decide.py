"""The decision, with measurements that are known beforehand: which sites are kept, why, and at how many evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spq_graph.decisions.decide import decide
from spq_graph.documents.plan import Reason
from spq_graph.documents.recipe import Override, Recipe
from spq_graph.terms.errors import UsageError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Unmatched
from tests.support.deciding import MODEL, TEN, Additive, kept, make, run, site

Keys = frozenset[str]


def test_the_costliest_are_kept_and_no_more_than_needed() -> None:
    plan, _ = run(TEN | {"s3": 0.4, "s7": 0.9, "s8": 0.004}, Recipe(max_kept=0.5, kl_margin=0.0))
    assert kept(plan) == {"s3", "s7"}
    by_key = {s.key: s for s in plan.sites}
    assert [by_key[k].evidence.rank for k in ("s7", "s3", "s8")] == [0, 1, 2]
    assert by_key["s7"].evidence.kl == 0.9
    assert by_key["s7"].reason is Reason.SPIKE
    assert by_key["s8"].reason is Reason.BUDGET
    assert by_key["s8"].precision is Precision.INT8
    assert plan.budget_met
    assert plan.search.kl == pytest.approx(0.0047)
    assert plan.search.kl_everywhere == pytest.approx(1.3047)


def test_standard_errors_stand_beside_every_kl() -> None:
    sites, ranges = make(dict.fromkeys(("s0", "s1", "s2"), 40.0))
    measure = Additive({"s0": 0.9, "s1": 0.004, "s2": 0.0001})
    recipe = Recipe(max_kept=0.5, kl_margin=0.0)
    plan = decide(sites, ranges, recipe, MODEL, measure=measure, stderr_of=lambda p: 0.1 * measure(p), tokens=64)
    assert plan.search.kl_everywhere_stderr == pytest.approx(0.1 * 0.9041)
    assert plan.search.kl_stderr == pytest.approx(0.1 * 0.0041)
    assert [s.evidence.kl_stderr for s in plan.sites] == pytest.approx([0.09, 0.0004, 0.00001])
    assert "0.9 ± 0.09" in (plan.sites[0].evidence.note or "")
    plan = decide(sites, ranges, recipe, MODEL, measure=measure, stderr_of=lambda _: None, tokens=64)
    assert plan.to_dict()["search"]["kl_stderr"] is None
    assert "±" not in (plan.sites[0].evidence.note or "")


def test_a_margin_is_left_for_other_text_where_the_cap_allows_it() -> None:
    costs = TEN | {"s3": 0.4, "s7": 0.9, "s8": 0.004}
    plan, _ = run(costs, Recipe(max_kept=0.5))
    assert kept(plan) == {"s3", "s7", "s8"}  # 0.0047 is within the budget, but not by a fifth
    plan, _ = run(costs, Recipe(max_kept=0.2))
    assert kept(plan) == {"s3", "s7"}
    assert plan.budget_met


def test_nothing_is_kept_and_nothing_tried_where_everywhere_is_good_enough() -> None:
    plan, measure = run(TEN, Recipe())
    assert not kept(plan)
    assert plan.budget_met
    assert plan.search.evaluations == len(measure.asked) == 1
    assert all(s.reason is Reason.DEFAULT for s in plan.sites)


def test_sites_of_low_ratio_are_no_candidates() -> None:
    ratios = dict.fromkeys(TEN, 2.5) | {"s1": 9.0, "s2": 3.5}
    plan, measure = run(TEN | {"s0": 5.0, "s1": 0.5}, Recipe(max_kept=0.5), ratios=ratios)
    assert plan.search.candidates == 2
    assert kept(plan) == {"s1"}
    assert not plan.budget_met
    assert {"s0": Precision.INT8} not in measure.asked
    assert {s.evidence.threshold for s in plan.sites} == {3.0}


def test_the_cap_holds() -> None:
    plan, _ = run(dict.fromkeys(TEN, 0.1), Recipe(max_kept=0.29))
    assert plan.search.cap == 2
    assert kept(plan) == {"s0", "s1"}
    assert not plan.budget_met
    assert "cap" in (plan.sites[5].evidence.note or "")


def test_out_of_reach_settles_for_the_asked_share_of_what_the_cap_wins_back() -> None:
    costs = dict.fromkeys(TEN, 0.2) | {"s0": 10.0, "s1": 5.0, "s2": 0.21}
    plan, _ = run(costs, Recipe(max_kept=0.3, recovery=0.98))
    assert kept(plan) == {"s0", "s1"}  # 15 of 15.21
    assert not plan.budget_met
    plan, _ = run(costs, Recipe(max_kept=0.3, recovery=0.99))
    assert kept(plan) == {"s0", "s1", "s2"}


def test_keeping_that_wins_nothing_back_is_not_paid_for() -> None:
    sites, ranges = make(dict.fromkeys(TEN, 40.0))
    plan = decide(sites, ranges, Recipe(max_kept=0.5), MODEL, measure=lambda precisions: 1.0 if precisions else 0.0)
    assert not kept(plan)
    assert not plan.budget_met


def test_a_cap_of_nothing() -> None:
    plan, measure = run(TEN | {"s0": 1.0}, Recipe(max_kept=0.0))
    assert (plan.search.cap, kept(plan), plan.budget_met) == (0, set(), False)
    assert all(len(asked) != 1 for asked in measure.asked)  # the order of what may not be kept is not asked for
    assert all(s.evidence.kl is None for s in plan.sites)


def test_evaluations_are_counted_once_each() -> None:
    costs = {f"s{n}": 2.0**-n for n in range(32)}
    plan, measure = run(costs, Recipe(max_kept=1.0))
    distinct = {frozenset(asked.items()) for asked in measure.asked}
    assert len(distinct) == len(measure.asked) == plan.search.evaluations
    # Everywhere, each alone, the cap, a bisection, and five formats.
    assert plan.search.evaluations <= 1 + 32 + 1 + 6 + 5
    assert plan.search.tokens == 64


def cheapest_prefix(costs: Mapping[str, float], cap: int, recipe: Recipe) -> tuple[int, bool]:
    """By trying all of them."""
    order = sorted(costs, key=lambda key: (-costs[key], key))
    rest = [math.fsum(costs[key] for key in order[n:]) for n in range(cap + 1)]
    aim = recipe.kl_budget * (1 - recipe.kl_margin)
    if rest[0] <= aim:
        return 0, True
    if rest[cap] <= aim:
        return next(n for n, kl in enumerate(rest) if kl <= aim), True
    if rest[0] <= recipe.kl_budget or rest[cap] >= rest[0]:
        return 0, rest[0] <= recipe.kl_budget
    if rest[cap] <= recipe.kl_budget:
        return next(n for n, kl in enumerate(rest) if kl <= recipe.kl_budget), True
    goal = rest[0] - recipe.recovery * (rest[0] - rest[cap])
    return next(n for n, kl in enumerate(rest) if kl <= goal), False


@settings(max_examples=150)
@given(
    units=st.lists(st.integers(0, 40), min_size=1, max_size=14),
    share=st.sampled_from([0.0, 0.15, 0.4, 1.0]),
    recovery=st.sampled_from([0.5, 0.9, 0.98]),
    margin=st.sampled_from([0.0, 0.2, 0.9]),
)
def test_bisection_finds_what_trying_everything_finds(
    units: list[int], share: float, recovery: float, margin: float
) -> None:
    # Exact in binary, and below the six digits that costs are ranked by.
    costs = {f"s{n:02}": unit / 1024 for n, unit in enumerate(units)}
    recipe = Recipe(max_kept=share, recovery=recovery, kl_margin=margin, kl_budget=0.01)
    plan, _ = run(costs, recipe)
    count, met = cheapest_prefix(costs, math.floor(share * len(costs)), recipe)
    assert (len(kept(plan)), plan.budget_met) == (count, met)
    assert kept(plan) == set(sorted(costs, key=lambda key: (-costs[key], key))[:count])


def test_ratio_rule_needs_no_measurement() -> None:
    ratios = {"a": 1.2, "b": 12.0, "c": 800.0, "d": 9.9}
    sites, ranges = make(ratios)

    def never(precisions: Mapping[str, Precision]) -> float:
        raise AssertionError

    plan = decide(sites, ranges, Recipe(spike_ratio=10), MODEL, measure=never)
    assert kept(plan) == {"b", "c"}
    assert (plan.search.rule, plan.search.evaluations, plan.budget_met) == ("ratio", 0, True)
    assert {s.evidence.threshold for s in plan.sites} == {10.0}


def test_without_ratio_or_measurement_the_cap_holds() -> None:
    sites, ranges = make({"a": 1.2, "b": 12.0, "c": 800.0, "d": 9.9})
    assert kept(decide(sites, ranges, Recipe(max_kept=1.0), MODEL)) == {"b", "c", "d"}
    fallback = decide(sites, ranges, Recipe(max_kept=0.5), MODEL)
    assert kept(fallback) == {"b", "c"}
    assert not fallback.budget_met
    assert next(s.reason for s in fallback.sites if s.key == "d") is Reason.BUDGET


def test_heads_and_routers_stay_and_do_not_count() -> None:
    head, router = site("lm_head", Role.LM_HEAD), site("router", Role.ROUTER)
    plan, measure = run(dict.fromkeys(TEN, 0.1), Recipe(max_kept=0.1), head, router)
    left = {s.key: s for s in plan.sites if s.key in ("lm_head", "router")}
    assert {s.precision for s in left.values()} == {Precision.FP32}
    assert {s.reason for s in left.values()} == {Reason.DEFAULT}
    assert plan.search.cap == 1  # a tenth of ten, not of twelve
    assert len(plan.counted) == 10
    assert "lm_head" not in kept(plan)
    assert not any({"lm_head", "router"} & asked.keys() for asked in measure.asked)


def test_the_head_is_a_site_like_any_other_on_request() -> None:
    plan, _ = run(TEN, Recipe(quantize_lm_head=True), site("lm_head", Role.LM_HEAD), site("router", Role.ROUTER))
    by_key = {s.key: s.precision for s in plan.sites}
    assert by_key["lm_head"] is Precision.INT8
    assert by_key["router"] is Precision.FP32


def test_a_site_without_a_range_stays_as_it_is() -> None:
    sites, ranges = make({"a": 9.0})
    plan = decide([*sites, site("b")], ranges, Recipe(spike_ratio=5), MODEL, stored={"b": Precision.FP16})
    assert plan.sites[1].precision is Precision.FP16
    assert plan.sites[1].reason is Reason.UNSUPPORTED
    assert plan.sites[1].range is None


def test_by_hand() -> None:
    overrides = (Override(pattern="s[45]", precision="int6_in_8"), Override(pattern="node_s5", precision="fp16"))
    recipe = Recipe(keep=("s1",), ignore=("s2",), overrides=overrides, high_precision="w8a16", max_kept=0.3)
    plan, measure = run(dict.fromkeys(TEN, 0.1), recipe)
    by_key = {s.key: s for s in plan.sites}
    assert by_key["s1"].precision is Precision.W8A16
    assert by_key["s2"].precision is Precision.FP32
    assert by_key["s4"].precision is Precision.INT6_IN_8
    assert by_key["s5"].precision is Precision.FP16  # the last match wins
    assert all(by_key[f"s{n}"].reason is Reason.OVERRIDE for n in (1, 2, 4, 5))
    assert all("by hand" in (by_key[f"s{n}"].evidence.note or "") for n in (1, 2, 4, 5))
    assert len(kept(plan)) == 3  # the cap counts those kept by hand
    # What is measured as kept has the precision that kept sites get.
    assert measure.asked[0] == {
        **{key: Precision.INT8 for key in TEN if key not in ("s2", "s5")},
        "s1": Precision.W8A16,
        "s4": Precision.INT6_IN_8,
        "s5": Precision.FP16,
    }


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(keep=("nowhere.*",)),
        Recipe(ignore=("nowhere.*",)),
        Recipe(overrides=(Override(pattern="nowhere.*", precision="int8"),)),
    ],
)
def test_a_pattern_that_fits_nothing_is_an_error(recipe: Recipe) -> None:
    with pytest.raises(UsageError, match=r"'nowhere\.\*' fits no site"):
        run(TEN, recipe)


def test_integers_cannot_be_asked_for_without_a_range() -> None:
    sites, ranges = make({"a": 9.0})
    recipe = Recipe(overrides=(Override(pattern="b", precision="int8"),))
    with pytest.raises(UsageError, match="without a range") as caught:
        decide([*sites, site("b")], ranges, recipe, MODEL)
    assert caught.value.where == "b"


def decoded(token: int) -> str:
    return f"<{token}>"


@pytest.mark.parametrize(("token_text", "expected"), [(None, None), (decoded, "<7>")])
def test_evidence(token_text: Callable[[int], str] | None, expected: str | None) -> None:
    sites, ranges = make({"a": 640.0})
    plan = decide(sites, ranges, Recipe(bits=6), MODEL, token_text=token_text, unmatched=[Unmatched("n", "why")])
    evidence = plan.sites[0].evidence
    assert evidence.max == 640.0
    assert evidence.ratio == pytest.approx(640, rel=1 / 128)
    assert (evidence.token, evidence.position, evidence.token_text) == (7, 0, expected)
    assert plan.sites[0].range == (-320.0, 640.0)
    assert [(u.node, u.reason) for u in plan.unmatched] == [("n", "why")]
    assert plan.calibration.tokens == 101
