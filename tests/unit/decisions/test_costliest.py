"""Many candidates: which of them are measured alone, and when none is."""

from __future__ import annotations

import pytest

from spq_graph.decisions.by_kl import FEWEST_MEASURED
from spq_graph.decisions.decide import decide
from spq_graph.documents.plan import Plan
from spq_graph.documents.recipe import Recipe
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from tests.support.deciding import MODEL, Additive, kept, make, site

# Two roles of forty sites each, of which one costs nothing, and the other by how far its quantizers reach.
UPS = {f"up{n:02}": 40.0 for n in range(40)}
DOWNS = {f"down{n:02}": 40.0 + n for n in range(40)}
ROLES = {key: site(key, Role.GLU_UP if key in UPS else Role.GLU_DOWN) for key in (*UPS, *DOWNS)}


def searched(
    costs: dict[str, float], formats: dict[Precision, float] | None = None, **recipe: object
) -> tuple[Plan, Additive]:
    _, ranges = make(UPS | DOWNS)
    measure = Additive(costs, formats)
    wanted = Recipe.model_validate({"scales": "static", "kl_margin": 0.0, **recipe})
    return decide(list(ROLES.values()), ranges, wanted, MODEL, measure=measure, tokens=64), measure


def alone(measure: Additive) -> set[str]:
    return {key for asked in measure.asked if len(asked) == 1 for key in asked}


def test_of_many_candidates_the_costliest_by_their_role_and_reach_are_measured_alone() -> None:
    costs = dict.fromkeys(UPS, 0.0) | {key: 0.1 if reach >= 75.0 else 0.0 for key, reach in DOWNS.items()}
    plan, measure = searched(costs)
    assert alone(measure) == {key for key, reach in DOWNS.items() if reach >= 40 + 40 - FEWEST_MEASURED}
    assert kept(plan) == {key for key, reach in DOWNS.items() if reach >= 75.0}
    assert plan.budget_met
    assert plan.search.candidates == len(ROLES)


def test_where_the_costliest_do_not_suffice_another_remedy_comes_before_any_site_is_measured_alone() -> None:
    plan, measure = searched(dict.fromkeys(ROLES, 0.01), {Precision.W8A8_TOKEN: 0.0}, scales="auto")
    assert {s.precision for s in plan.sites} == {Precision.W8A8_TOKEN}
    assert not alone(measure)


def test_who_leaves_no_other_remedy_has_them_measured() -> None:
    plan, measure = searched(
        dict.fromkeys(ROLES, 0.01), remedies={"peel": {"use": "never"}, "smooth": {"use": "never"}}
    )
    assert len(alone(measure)) == FEWEST_MEASURED
    assert len(kept(plan)) == plan.search.cap == 12
    assert plan.search.kl_candidates == pytest.approx(0.0)
