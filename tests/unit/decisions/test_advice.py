"""Advice is followed: what comes out then is another outcome, and where nothing would change it is not given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from spq_graph.decisions.advice import advise, why_not_met
from spq_graph.decisions.decide import decide
from spq_graph.documents.plan import Plan
from spq_graph.documents.recipe import Override, Recipe
from spq_graph.documents.verdict import Advice
from spq_graph.terms.precision import Precision
from tests.support.deciding import MODEL, TEN, Additive, kept, make, run


def following(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | changes)


def advice_for(plan: Plan, field: str) -> Advice | None:
    return next((advice for advice in advise(plan) if field in advice.recipe), None)


FLAT = {f"s{n}": 0.1 for n in range(10)}


def test_more_kept_sites_where_they_are_enough() -> None:
    costs = TEN | {f"s{n}": 0.1 for n in range(5)}
    plan, _ = run(costs, Recipe(max_kept=0.2))
    assert not plan.budget_met
    advice = advice_for(plan, "max_kept")
    assert advice is not None
    assert advice.recipe == {"max_kept": 1.0}  # all ten are candidates
    assert run(costs, following(plan.recipe, advice.recipe))[0].budget_met


def test_more_kept_sites_with_others_by_hand() -> None:
    """The cap counts those that are kept by hand, so the share that is advised holds them as well."""
    costs = {f"s{n}": 0.1 for n in range(7)}
    ratios = dict.fromkeys(costs, 40.0) | {"s5": 2.0, "s6": 2.0}
    recipe = Recipe(max_kept=0.3, keep=("s5", "s6"))
    plan, _ = run(costs, recipe, ratios=ratios)
    advice = advice_for(plan, "max_kept")
    assert advice is not None
    assert run(costs, following(recipe, advice.recipe), ratios=ratios)[0].budget_met


def test_sites_that_were_no_candidates() -> None:
    """What they cost is above the budget by itself: more kept candidates alone would not help."""
    ratios = dict.fromkeys(FLAT, 40.0) | {"s8": 2.0, "s9": 2.0}
    plan, _ = run(FLAT, Recipe(max_kept=0.2), ratios=ratios)
    advice = advice_for(plan, "max_kept")
    assert advice is not None
    assert advice.recipe == {"candidate_ratio": 0.0, "max_kept": 1.0}
    assert not run(FLAT, following(plan.recipe, {"max_kept": 1.0}), ratios=ratios)[0].budget_met
    assert run(FLAT, following(plan.recipe, advice.recipe), ratios=ratios)[0].budget_met


def test_what_is_held_in_integers_by_hand_is_not_won_by_keeping_others() -> None:
    recipe = Recipe(max_kept=0.2, overrides=(Override(pattern="s9", precision="int8"),))
    plan, _ = run(FLAT, recipe)
    assert advice_for(plan, "max_kept") is None
    assert not run(FLAT, following(recipe, {"candidate_ratio": 0.0, "max_kept": 1.0}))[0].budget_met


def test_recovery_that_stopped_early() -> None:
    """24 of 31 allowed sites were kept, and it was said that 15 % were not enough."""
    costs = dict.fromkeys(FLAT, 0.2) | {"s0": 10.0, "s1": 5.0, "s2": 0.21}
    plan, _ = run(costs, Recipe(max_kept=0.3))
    assert len(kept(plan)) == 2
    assert "with 2 of at most 3 sites kept" in why_not_met(plan)
    assert "with 3 (recovery = 0.98 stops" in why_not_met(plan)
    advice = advice_for(plan, "recovery")
    assert advice is not None
    followed, _ = run(costs, following(plan.recipe, advice.recipe))
    assert len(kept(followed)) == 3
    assert (followed.search.kl or 0.0) < (plan.search.kl or 0.0)
    assert advice_for(followed, "recovery") is None


def test_where_all_that_may_be_kept_is_kept_recovery_is_no_matter() -> None:
    plan, _ = run(FLAT, Recipe(max_kept=0.2))
    assert advice_for(plan, "recovery") is None
    assert "recovery" not in why_not_met(plan)


def test_keeping_that_wins_nothing_back_is_not_advised() -> None:
    """Only what costs nothing less changes it: KL is 1 as soon as a site is in integers."""
    sites, ranges = make(dict.fromkeys(TEN, 40.0))

    def measure(precisions: Mapping[str, Precision]) -> float:
        return 1.0 if precisions else 0.0

    recipe = Recipe(max_kept=0.5)
    plan = decide(sites, ranges, recipe, MODEL, measure=measure)
    assert not kept(plan)
    assert "no more with 5" in why_not_met(plan)
    assert advice_for(plan, "recovery") is None
    for advice in advise(plan):
        assert decide(sites, ranges, following(recipe, advice.recipe), MODEL, measure=measure).budget_met


@pytest.mark.parametrize("costs", [FLAT, TEN | {"s0": 3.0, "s1": 0.7, "s2": 0.007}, {"s0": 0.0123456, "s1": 123.456}])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_a_budget_that_is_advised_is_met(costs: dict[str, float], share: float) -> None:
    plan, _ = run(costs, Recipe(max_kept=share))
    advice = advice_for(plan, "kl_budget")
    assert (advice is None) is plan.budget_met
    if advice is not None:
        assert advice.recipe["kl_budget"] > plan.recipe.kl_budget
        assert run(costs, following(plan.recipe, advice.recipe))[0].budget_met


def test_more_bits_where_there_are_more() -> None:
    assert advice_for(run(FLAT, Recipe(max_kept=0.2, bits=8))[0], "bits") is None
    plan, _ = run(FLAT, Recipe(max_kept=0.2, bits=6))
    advice = advice_for(plan, "bits")
    assert advice is not None
    sites, ranges = make(dict.fromkeys(FLAT, 40.0))

    def by_grid(precisions: Mapping[str, Precision]) -> float:
        return sum(0.1 * 4.0 ** (6 - (p.bits or 8)) for p in precisions.values() if p.takes_branch)

    better = decide(sites, ranges, following(plan.recipe, advice.recipe), MODEL, measure=by_grid)
    assert (better.search.kl or 1.0) < (plan.search.kl or 0.0)


def test_a_format_by_hand_that_misses_the_budget() -> None:
    formats = {Precision.FP8_E4M3: 0.004, Precision.FP8_E5M2: 0.003}
    costs = dict.fromkeys(("s0", "s1", "s2", "s3"), 0.1)
    sites, ranges = make(dict.fromkeys(costs, 40.0))
    recipe = Recipe(max_kept=1.0, high_precision="fp8")
    plan = decide(sites, ranges, recipe, MODEL, measure=Additive(costs, formats))
    assert not plan.budget_met
    advised = [
        decide(sites, ranges, following(recipe, a.recipe), MODEL, measure=Additive(costs, formats))
        for a in advise(plan)
    ]
    assert advised
    assert all(found.budget_met for found in advised)


def test_too_many_candidates_by_ratio() -> None:
    """Without anything to measure on; the message had no KL to tell, and failed for it."""
    sites, ranges = make({"a": 1.2, "b": 12.0, "c": 800.0, "d": 9.9})
    plan = decide(sites, ranges, Recipe(max_kept=0.5), MODEL)
    assert "3 sites have a max/median ratio above 3, and 2 of them" in why_not_met(plan)
    (advice,) = advise(plan)
    assert decide(sites, ranges, following(plan.recipe, advice.recipe), MODEL).budget_met


def test_nothing_is_advised_where_nothing_is_missing() -> None:
    assert not advise(run(TEN, Recipe(bits=6))[0])
