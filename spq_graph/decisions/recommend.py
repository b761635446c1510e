"""Which row of a ladder serves the use that was asked for, the plan's own or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import geometric_mean
from typing import Any, Literal

from spq_graph.decisions.variants import SCHEMES
from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.report import Report, Rung
from spq_graph.documents.speed import SpeedRow
from spq_graph.documents.verdict import Recommended
from spq_graph.terms.kernels import OPERATORS
from spq_graph.terms.rows import FP32, SPIKE_AWARE, RowId, RowKind
from spq_graph.terms.targets import Use

# A row is called ready within this much of the floating-point perplexity.
READY_WITHIN = 0.01
# Sizes and speeds that differ by less are alike: between them the plan's own row goes first, and then the most exact.
ALIKE = 0.02


def recommend(plan: Plan, report: Report) -> Recommended | None:
    """Of the rows that lose no more than the limit, the fastest for the use where speed was measured, or the smallest.

    Rows that cannot be delivered stay out: controls, and weights alone where the plan's target has no form for them.
    The plan's own goes first of those that cost the same, but where all sites in another format are surely closer to
    FP32.
    Speed is that of `bench`; where some rows were timed, those that were not stay out.

    Returns:
        None where no row is within the limit, or none was measured.
    """
    fp32 = report.rung(FP32)
    if fp32 is None:
        return None
    losses = [(rung, rung.perplexity / fp32.perplexity - 1) for rung in report.ladder if _delivers(rung.id, plan)]
    within = {id(rung): loss for rung, loss in losses if loss <= READY_WITHIN}
    rungs = [rung for rung, _ in losses if id(rung) in within]
    costs = {id(rung): cost for rung in rungs if (cost := _seconds(rung, plan, report)) is not None}
    by: Literal["speed", "size"] = "speed" if costs else "size"
    costs = costs or {id(rung): float(rung.bytes) for rung in rungs}
    least = min(costs.values(), default=0.0)
    best = [rung for rung in rungs if id(rung) in costs and costs[id(rung)] <= (1 + ALIKE) * least]
    if not best:
        return None
    chosen = min(best, key=lambda rung: (not _is_own(rung, plan), within[id(rung)]))
    if _is_own(chosen, plan):  # it gives way to one in another format that is surely more exact, and runs as a kernel
        exact = [rung for rung in best if rung.id.format is not None and surely_closer(rung, chosen)]
        exact = [rung for rung in exact if by == "speed" or OPERATORS.intersection(rung.executed)]
        chosen = min(exact, key=lambda rung: within[id(rung)], default=chosen)
    own = _is_own(chosen, plan)
    return Recommended(
        id=chosen.id,
        bits=chosen.bits,
        loss=within[id(chosen)],
        bytes=chosen.bytes,
        by=by,
        in_out=own,
        recipe={} if own else changes_for(chosen.id, chosen.bits, plan),
    )


def surely_closer(one: Rung, other: Rung) -> bool:
    """Whether one row is closer to FP32 than another by more than the standard errors of both."""
    if one.kl_stderr is None or other.kl_stderr is None:
        return False
    return one.kl + math.hypot(one.kl_stderr, other.kl_stderr) < other.kl


def changes_for(row: RowId, bits: int | None, plan: Plan) -> dict[str, Any]:
    """The fields of a plan's recipe with which `quantize` makes another row of its ladder."""
    recipe = plan.recipe
    if row.all_in_one:
        precision = (row.format or recipe.profile.weight_only[1]).value
        left = [{"pattern": s.key, "precision": s.precision.value} for s in plan.sites if s.untouched]
        return {"overrides": [{"pattern": "*", "precision": precision}, *left], **_unset(recipe, "keep", "ignore")}
    changes: dict[str, Any] = {} if bits in (None, recipe.bits) else {"bits": bits}
    if row.kind is RowKind.EVERYWHERE:
        by_hand = _unset(recipe, "keep", "ignore", "overrides", "spike_ratio")
        never = {name: {"use": "never"} for name in type(recipe.remedies).model_fields}
        plain = {"remedies": never} if plan.treatments else {}
        static = {"scales": "static"} if recipe.may_scale_by_token or plan.search.scales != "static" else {}
        return changes | {"max_kept": 0.0} | by_hand | static | plain | dict(SCHEMES[row.scheme])
    if row.kept_in is None:
        return changes
    named = [s.key for s in plan.kept if s.reason is Reason.OVERRIDE and s.range is not None]
    kept = {"keep": [*recipe.keep, *named]} if recipe.ignore or recipe.overrides else {}
    scaled = {"scales": plan.search.scales} if plan.search.scales != "static" else {}
    return changes | {"high_precision": row.kept_in.value} | scaled | kept


def _unset(recipe: Recipe, *names: str) -> dict[str, Any]:
    """These fields as they are without being given, where the recipe has them otherwise."""
    plain = Recipe()
    return {
        name: plain.model_dump(mode="json")[name] for name in names if getattr(recipe, name) != getattr(plain, name)
    }


def _delivers(row: RowId, plan: Plan) -> bool:
    if row.with_remedy or row.without_remedy or row.target:
        return False
    if row.kind is RowKind.WEIGHT_ONLY:
        return plan.recipe.profile.weight_only[0] == plan.recipe.target
    named = (row.format, row.kept_in)
    fits = all(precision is None or plan.recipe.allows(precision) for precision in named)
    return fits and row.kind in (RowKind.EVERYWHERE, RowKind.SPIKE_AWARE)


def _is_own(rung: Rung, plan: Plan) -> bool:
    return rung.id == SPIKE_AWARE and rung.bits == plan.recipe.bits


def _seconds(rung: Rung, plan: Plan, report: Report) -> float | None:
    """How long the use takes with a row beside the first one that was timed; None where it was not."""
    if report.speed is None or rung.bits not in (plan.recipe.bits, 8 if rung.id.all_in_one else None):
        return None
    row = next((r for r in report.speed.rows if r.id == rung.id and r.target == plan.recipe.target), None)
    times = _times(row, plan.recipe.use) if row is not None else []
    return 1 / geometric_mean(times) if times else None


def _times(row: SpeedRow, use: Use) -> Sequence[float]:
    """How many times faster than the first row: of the use, or where nothing says which, of both alike."""
    prefill = [geometric_mean(one.times for one in row.prefill.values())] if row.prefill and use != "decode" else []
    decode = [row.decode.times] if row.decode is not None and row.decode.times and use != "prefill" else []
    return prefill + decode
