"""Plans of a few sites, for any target."""

from __future__ import annotations

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.plan import Evidence, ModelRef, Plan, Reason, SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.search import Search
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site


def plan(*sites: SitePlan, **recipe: object) -> Plan:
    return Plan(
        model=ModelRef(digest="", origin=""),
        recipe=Recipe.model_validate(recipe),
        search=Search(rule="none"),
        calibration=CalibrationRef(digest="", tokens=0, sequences=0),
        sites=list(sites),
        budget_met=True,
    )


def site(key: str, precision: Precision, reason: Reason = Reason.SPIKE, high: float = 4.0) -> SitePlan:
    return SitePlan(
        site=Site(key=key, node=f"node_{key}", role=Role.GLU_DOWN, layer=0, shape=(8, 8), input=f"in_{key}"),
        precision=precision,
        reason=reason,
        range=(-1.0, high),
        evidence=Evidence(note="costs KL 0.1"),
    )
