"""The same plan for another target. Pure, as `decide` is: no graph, no file."""

from __future__ import annotations

from collections.abc import Collection

from spq_graph.decisions import smoothing
from spq_graph.decisions.branches import WHY
from spq_graph.documents.plan import Plan, Reason, SitePlan
from spq_graph.documents.recipe import Recipe, legal_name
from spq_graph.documents.treatment import Cause, Treatment
from spq_graph.terms.errors import UsageError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.terms.targets import PROFILES, Target


def retarget(plan: Plan, target: Target) -> Plan:
    """The plan for another target: every site as planned, or the nearest to it that the target can run.

    Sites that change get reason `unsupported_on_target`, and a note of what was planned for them and why it is not
    possible. Ranges serve any target: what follows from them is worked out when the plan is applied. So integers with
    scales by token stay integers, with static scales; but for sites that are kept, which are to be as exact.
    """
    if target == plan.recipe.target and not _unsupported(plan):
        return plan
    recipe = _recipe_for(plan.recipe, target)
    sites = [_settled(site, recipe) for site in plan.sites]
    taking = {site.key for site in sites if site.precision.takes_branch}
    treatments = [_treated(treatment, taking) for treatment in plan.treatments]
    told: dict[str, object] = {} if recipe.allows(plan.usual) else {"scales": "static"}
    search = plan.search.model_copy(update=told)
    return plan.model_copy(update={"recipe": recipe, "search": search, "sites": sites, "treatments": treatments})


def _recipe_for(recipe: Recipe, target: Target) -> Recipe:
    """The recipe for another target, less what has no near there: the sites say one by one what became of it."""
    profile = PROFILES[target]
    changed: dict[str, object] = {"target": target}
    if profile.signed:
        changed["activations"] = "symmetric"
    if not profile.head_formats and recipe.head == "8bit":
        changed["head"] = "auto"
    if profile.lookup is None and recipe.embedding == "8bit":
        changed["embedding"] = "auto"
    if recipe.scales == "by_token" and not profile.allows(Precision.W8A8_TOKEN):
        changed["scales"] = "auto"
    changed["high_precision"] = legal_name(recipe.high_precision, profile) or "auto"
    named = [(o.pattern, legal_name(o.precision, profile)) for o in recipe.overrides]
    changed["overrides"] = [{"pattern": pattern, "precision": name} for pattern, name in named if name is not None]
    return Recipe.model_validate(recipe.model_dump() | changed)


def _treated(treatment: Treatment, taking: Collection[str]) -> Treatment:
    """A branch at those of its sites that still take one, and factors at all; refused where none is in integers.

    A prefix stays, whatever its sites are in: the ranges are those behind it.
    """
    if not treatment.applied or treatment.remedy == "prefix":
        return treatment
    smooth = treatment.remedy == "smooth"
    if sites := tuple(key for key in treatment.sites if key in taking):
        return treatment if smooth else treatment.model_copy(update={"sites": sites})
    cause = Cause.NOT_NEEDED
    note = (smoothing.WHY if smooth else WHY)[cause]
    return treatment.model_copy(update={"applied": False, "reason": cause, "note": note})


def _settled(site: SitePlan, recipe: Recipe) -> SitePlan:
    if site.untouched:
        return site
    settled = site.kept or site.aside  # in a format of its own, whose nearest is another one
    if site.role is Role.EMBEDDING:
        legal = recipe.profile.allows_at(site.role, site.precision)
        why = None if legal else f"{site.precision} was planned: {recipe.profile.why_not(site.precision, site.role)}"
        precision = site.precision if legal else Precision.FP32
    elif site.precision.row.by_token and site.range is not None and not (settled or recipe.allows(site.precision)):
        precision = Precision.INT8
        why = f"{site.precision} was planned: {recipe.profile.why_not(site.precision)}; {precision} instead"
    else:
        precision, why = recipe.profile.settle(site.precision, site.largest)
    if why is None:
        return site
    before = f"{site.reason.value}: {site.evidence.note}; " if site.evidence.note else f"{site.reason.value}; "
    evidence = site.evidence.model_copy(update={"note": before + why})
    return site.model_copy(update={"precision": precision, "reason": Reason.UNSUPPORTED, "evidence": evidence})


def _unsupported(plan: Plan) -> list[SitePlan]:
    """Sites that the plan's own target cannot run as planned."""
    profile = plan.recipe.profile
    return [site for site in plan.sites if not (profile.allows_at(site.role, site.precision) or site.untouched)]


def refuse_unsupported(plan: Plan) -> None:
    """Check that a plan asks for nothing that its target cannot run; a plan can be written by hand.

    Raises:
        UsageError: naming the sites and what is missing.
    """
    profile = plan.recipe.profile
    if wrong := _unsupported(plan):
        sites = ", ".join(f"{s.key} ({s.precision})" for s in wrong[:5])
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UsageError(
            f"target '{profile.name}' cannot run {len(wrong)} sites of this plan as planned: {sites}{more}: "
            f"{profile.why_not(wrong[0].precision, wrong[0].role)}",
            where="plan",
            remedy=f"`spq-graph apply --target {profile.name}` replaces them and notes why; or plan for another target",
        )
