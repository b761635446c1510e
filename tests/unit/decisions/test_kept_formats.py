"""Which format kept sites get: by rule, by measured error, and never at the cost of the budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from spq_graph.decisions.decide import decide
from spq_graph.decisions.kept_formats import by_rule, candidates, pick
from spq_graph.documents.plan import Plan
from spq_graph.documents.recipe import Override, Recipe
from spq_graph.terms.errors import GraphError
from spq_graph.terms.precision import Precision
from tests.support.deciding import MODEL, make, run

E4M3, E5M2, W8FP8, TOKEN, BLOCK, FP16 = (
    Precision.FP8_E4M3,
    Precision.FP8_E5M2,
    Precision.W8FP8A16,
    Precision.W8A8_TOKEN,
    Precision.W8A8_BLOCK,
    Precision.FP16,
)
BUDGET = Recipe().kl_budget


def precisions(plan: Plan) -> dict[str, Precision]:
    return {s.key: s.precision for s in plan.sites}


@pytest.mark.parametrize(("ratio", "expected"), [(None, E4M3), (37.0, E4M3), (5000.0, E4M3), (20_000.0, E5M2)])
def test_without_measuring_the_ratio_settles_the_fp8_format(ratio: float | None, expected: Precision) -> None:
    assert by_rule(Recipe(high_precision="fp8"), Precision.FP32, ratio) is expected


@pytest.mark.parametrize("stored", [Precision.FP32, FP16])
def test_without_measuring_auto_leaves_what_the_graph_has(stored: Precision) -> None:
    assert by_rule(Recipe(), stored, 500.0) is stored


def test_a_named_format_is_what_it_says() -> None:
    assert by_rule(Recipe(high_precision="w8fp8a16"), Precision.FP32, 9e9) is W8FP8


def test_portable_does_not_try_what_it_cannot_run() -> None:
    assert not {TOKEN, BLOCK, Precision.W8A16} & set(candidates(Recipe(target="portable"), frozenset({Precision.FP32})))
    assert Precision.W8A16 in candidates(Recipe(target="cuda"), frozenset({Precision.FP32}))
    assert set(candidates(Recipe(), frozenset({Precision.FP32}))) == {E4M3, E5M2, W8FP8, TOKEN, BLOCK, FP16}
    assert FP16 not in candidates(Recipe(), frozenset({FP16}))  # that is what the graph has


def test_the_most_exact_of_those_that_cost_the_same_is_picked() -> None:
    measured = {E4M3: 0.0030, E5M2: 0.0033, W8FP8: 0.0028, BLOCK: 0.0021, FP16: 0.0020}
    assert pick(measured, as_is=0.0020, everywhere=0.5, recipe=Recipe()) is BLOCK


def test_eight_bits_give_way_where_they_cost_too_much() -> None:
    recipe = Recipe()
    too_much = {E4M3: 0.02, BLOCK: 0.011}
    assert pick({**too_much, FP16: 0.0021}, as_is=0.002, everywhere=0.3, recipe=recipe) is FP16
    assert pick(too_much, as_is=0.002, everywhere=0.3, recipe=recipe) is None


def test_a_met_budget_stays_met() -> None:
    """Two per cent of a large gain are more than the budget leaves."""
    assert pick({BLOCK: 0.0058}, as_is=0.004, everywhere=2.0, recipe=Recipe()) is None
    assert pick({BLOCK: 0.0049}, as_is=0.004, everywhere=2.0, recipe=Recipe()) is BLOCK


def test_out_of_the_budgets_reach_a_share_of_the_gain_may_be_given_away() -> None:
    assert pick({E4M3: 0.017}, as_is=0.012, everywhere=0.3, recipe=Recipe()) is E4M3  # 0.012 + 2 % of 0.288
    assert pick({E4M3: 0.018}, as_is=0.012, everywhere=0.3, recipe=Recipe()) is None


def test_infinite_error_is_never_picked() -> None:
    assert pick({E4M3: math.inf}, as_is=0.001, everywhere=0.3, recipe=Recipe()) is None


def test_auto_measures_all_formats_and_says_so() -> None:
    costs = {"a": 0.9, "b": 0.4, "c": 0.0001}
    formats = {E4M3: 0.0004, E5M2: 0.0009, W8FP8: 0.0003, TOKEN: 0.0006, BLOCK: 0.0002}
    plan, _ = run(costs, Recipe(max_kept=0.7), formats=formats)
    assert precisions(plan) == {"a": BLOCK, "b": BLOCK, "c": Precision.INT8}
    assert plan.search.formats == {
        "fp8_e4m3": 0.0009,
        "fp8_e5m2": 0.0019,
        "w8fp8a16": 0.0007,
        "w8a8_token": 0.0013,
        "w8a8_block": 0.0005,
        "fp16": 0.0001,
        "as_is": 0.0001,
    }
    assert plan.search.kl == 0.0005
    assert plan.budget_met


def test_fp8_is_settled_site_by_site() -> None:
    class ByRange:
        """E4M3 loses on site b, E5M2 on site a."""

        def __call__(self, precisions: Mapping[str, Precision]) -> float:
            cost = {("a", E4M3): 0.0001, ("a", E5M2): 0.0004, ("b", E4M3): 0.3, ("b", E5M2): 0.0002}
            return math.fsum(0.5 if p.bits else cost.get((key, p), 0.0) for key, p in precisions.items())

    sites, ranges = make({"a": 40.0, "b": 41.0, "c": 1.0})
    recipe = Recipe(high_precision="fp8", max_kept=0.7, kl_budget=0.6)
    plan = decide(sites, ranges, recipe, MODEL, measure=ByRange(), tokens=64)
    assert precisions(plan) == {"a": E4M3, "b": E5M2, "c": Precision.INT8}
    by_key = {s.key: s.evidence.formats for s in plan.sites}
    assert by_key == {
        "a": {"fp8_e4m3": 0.0001, "fp8_e5m2": 0.0004},
        "b": {"fp8_e4m3": 0.3, "fp8_e5m2": 0.0002},
        "c": None,
    }


def test_what_is_kept_by_hand_gets_the_measured_format_too() -> None:
    costs = {"a": 0.9, "b": 0.0001, "c": 0.0001}
    recipe = Recipe(keep=("b",), max_kept=0.7)
    plan, _ = run(costs, recipe, formats={E4M3: 0.01, E5M2: 0.01, W8FP8: 0.01, TOKEN: 0.01, BLOCK: 0.0002})
    assert precisions(plan) == {"a": BLOCK, "b": BLOCK, "c": Precision.INT8}


def test_a_format_that_the_graph_cannot_have_is_passed_over() -> None:
    def measure(precisions: Mapping[str, Precision]) -> float:
        if set(precisions.values()) & {E4M3, E5M2, W8FP8, TOKEN, FP16}:
            raise GraphError("opset 11")
        return math.fsum(0.5 if p.bits else 0.0001 for p in precisions.values())

    sites, ranges = make({"a": 40.0, "b": 1.0})
    plan = decide(sites, ranges, Recipe(max_kept=0.5, kl_budget=0.6), MODEL, measure=measure, tokens=64)
    assert precisions(plan)["a"] is BLOCK
    assert set(plan.search.formats or {}) == {"w8a8_block", "as_is"}


def test_by_token_is_the_first_choice_for_long_prompts() -> None:
    formats = {E4M3: 0.0004, E5M2: 0.0009, W8FP8: 0.0003, TOKEN: 0.0006, BLOCK: 0.0002}
    plan, _ = run({"a": 0.9, "b": 0.0001}, Recipe(max_kept=0.5, use="prefill"), formats=formats)
    assert precisions(plan) == {"a": TOKEN, "b": Precision.INT8}


def test_scales_by_token_need_no_range() -> None:
    sites, ranges = make({"a": 40.0})
    del ranges.values["in_a"]
    plan = decide(sites, ranges, Recipe(overrides=(Override(pattern="a", precision="w8a8_token"),)), MODEL)
    assert precisions(plan) == {"a": TOKEN}


def test_activations_in_fp8_by_hand_need_a_range() -> None:
    sites, ranges = make({"a": 40.0})
    del ranges.values["in_a"]
    recipe = Recipe(overrides=(Override(pattern="a", precision="fp8_e4m3"),))
    with pytest.raises(Exception, match="without a range"):
        decide(sites, ranges, recipe, MODEL)
