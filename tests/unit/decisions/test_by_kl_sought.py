"""What KL is sought with outlier branches where nobody gave a budget: about what 8-bit weights alone cost."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from spq_graph.decisions.decide import decide
from spq_graph.documents.changes import Peel
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Site
from tests.support.deciding import MODEL, site
from tests.unit.decisions.test_by_kl_branches import CHANNELS, MANY, Rounding, everywhere_an_outlier

# With branches of four channels all of them cost ten times four times this, by the square of a width of 2.
COST = 1e-4
WITH_BRANCHES = 0.004


class WithWeights(Rounding):
    """As `Rounding`; and what is in 8-bit weights by block costs the same at each site."""

    def __init__(self, ranges: Ranges, weights: float) -> None:
        super().__init__(ranges, dict.fromkeys(MANY, COST))
        self.weights = weights / len(MANY)

    def __call__(self, precisions: Mapping[str, Precision], peels: Mapping[str, Peel] | None = None) -> float:
        by_block = sum(precision is Precision.W8A8_BLOCK for precision in precisions.values())
        return super().__call__(precisions, peels) + by_block * self.weights


def made(weights: float, **recipe: object) -> Plan:
    values = everywhere_an_outlier(3)
    sites = [site(key) for key in values]
    sites = [Site(key=s.key, node=s.node, role=s.role, layer=0, shape=(CHANNELS, 4), input=s.input) for s in sites]
    ranges = Ranges("sha256:0", {f"in_{key}": value for key, value in values.items()}, tokens=100, sequences=1)
    given = Recipe.model_validate({"kl_margin": 0.0, "max_kept": 0.5, **recipe})
    return decide(sites, ranges, given, MODEL, measure=WithWeights(ranges, weights))


@pytest.mark.parametrize(("weights", "sought"), [(0.0001, 0.003), (0.0028, 0.0042), (0.02, None)])
def test_near_what_weights_cost_and_no_less_than_a_floor(weights: float, sought: float | None) -> None:
    plan = made(weights, scales="static")
    assert (plan.search.kl_weights, plan.search.sought) == (pytest.approx(weights), pytest.approx(sought))
    assert (plan.search.kl or 1) <= (sought or 0.005)
    assert plan.recipe.kl_budget == 0.005


def test_a_lower_one_keeps_more() -> None:
    loose, near = made(0.02, scales="static"), made(0.0001, scales="static")
    assert not loose.kept
    assert loose.search.kl == pytest.approx(WITH_BRANCHES)
    assert near.kept
    assert (near.search.kl or 1) <= 0.003


def test_what_is_sought_and_not_reached_is_no_failure_within_the_budget() -> None:
    plan = made(0.0001, max_kept=0.0)
    assert plan.search.sought == 0.003
    assert plan.search.kl == pytest.approx(WITH_BRANCHES)
    assert plan.budget_met


def test_scales_by_token_within_the_budget_are_taken_for_what_they_are() -> None:
    """A search over static scales and kept sites, which seldom comes closer, would measure dozens of times more."""
    plan, static = made(0.0001), made(0.0001, scales="static")
    assert (plan.search.scales, plan.search.sought) == ("by_token", 0.003)
    assert plan.search.kl == pytest.approx(WITH_BRANCHES)
    assert plan.budget_met
    assert not plan.kept
    assert (plan.search.evaluations or 0) < (static.search.evaluations or 0)


def test_what_was_asked_to_be_in_integers_counts_as_what_the_rule_has_there() -> None:
    """As where a recipe names the precision of every site, and leaves branches to the rule."""
    plan = made(0.0028, overrides=[{"pattern": "s*", "precision": "int8"}])
    assert (plan.search.kl_weights, plan.search.sought) == (pytest.approx(0.0028), pytest.approx(0.0042))
    some = made(0.0028, overrides=[{"pattern": "s[0-4]", "precision": "fp32"}])
    assert some.search.kl_weights == pytest.approx(0.0014)


def test_a_budget_that_is_given_holds() -> None:
    plan = made(0.0001, kl_budget=0.005)
    assert (plan.search.kl_weights, plan.search.sought) == (None, None)
    assert plan.search.kl == pytest.approx(WITH_BRANCHES)


def test_weights_alone_are_not_measured_where_few_kept_sites_will_do() -> None:
    assert made(0.0001, max_kept=1.0).search.kl_weights is None


def test_a_target_without_them_has_the_default() -> None:
    plan = made(0.0001, target="tensorrt")
    assert (plan.search.kl_weights, plan.search.sought) == (None, None)
