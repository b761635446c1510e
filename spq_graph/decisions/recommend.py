"""Which row of a ladder serves the use that was asked for, the plan's own or not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean
from typing import Any, Literal

from spq_graph.decisions.variants import SCHEMES
from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.report import Report, Rung
from spq_graph.documents.speed import SpeedRow
from spq_graph.documents.verdict import Recommended
from spq_graph.terms.kernels import OPERATORS
from spq_graph.terms.rows import EVERYWHERE, FP32, SPIKE_AWARE, WEIGHT_ONLY, RowId, RowKind
from spq_graph.terms.targets import Use

# A row is called ready within this much of the floating-point perplexity.
READY_WITHIN = 0.01
# Sizes and speeds that differ by less are alike: between them the plan's own row goes first, and then the most exact.
ALIKE = 0.02


@dataclass(frozen=True, slots=True)
class _Cost:
    """What a row takes, or wins, and its standard error: bytes have none, and times of one round none that is known."""

    value: float
    error: float = 0.0

    def surely_above(self, least: _Cost) -> bool:
        """Whether it is more than another by more than what counts as alike, and than the standard errors of both."""
        return self.value - least.value > max(ALIKE * least.value, math.hypot(self.error, least.error))


def recommend(plan: Plan, report: Report) -> Recommended | None:
    """Of the rows that lose no more than the limit, the fastest for the use where speed was measured, or the smallest.

    Rows that cannot be delivered stay out: controls, and weights alone where the plan's target has no form for them.
    The plan's own goes first of those that cost the same, but where all sites in another format are surely closer to
    FP32.
    Speed is that of `bench`; where some rows were timed, those that were not stay out.

    Returns:
        None where no row is within the limit, or none was measured.
    """
    candidates = _candidates(plan, report.ladder)
    rungs, within = [rung for rung, _ in candidates], {id(rung): loss for rung, loss in candidates}
    costs = {id(rung): cost for rung in rungs if (cost := _seconds(rung, plan, report)) is not None}
    by: Literal["speed", "size"] = "speed" if costs else "size"
    costs = costs or {id(rung): _Cost(float(rung.bytes)) for rung in rungs}
    least = min(costs.values(), default=_Cost(0.0), key=lambda cost: cost.value)
    best = [rung for rung in rungs if id(rung) in costs and not costs[id(rung)].surely_above(least)]
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


def contenders(plan: Plan, ladder: Sequence[Rung]) -> list[RowId]:
    """Rows in other formats that speed has to decide between, beside the plan's own: those within the limit.

    Weights alone are always among them where the target has a form for that: it is what else people would take.
    """
    within = [rung.id for rung, _ in _candidates(plan, ladder)]
    found = [row for row in within if row.format is not None or row == EVERYWHERE]
    return [*found, *([WEIGHT_ONLY] if _delivers(WEIGHT_ONLY, plan) else [])]


def _candidates(plan: Plan, ladder: Sequence[Rung]) -> list[tuple[Rung, float]]:
    """Rows that can be delivered and lose no more than the limit, with what they lose."""
    fp32 = next((rung for rung in ladder if rung.id == FP32), None)
    if fp32 is None:
        return []
    losses = [(rung, rung.perplexity / fp32.perplexity - 1) for rung in ladder if _delivers(rung.id, plan)]
    return [(rung, loss) for rung, loss in losses if loss <= READY_WITHIN]


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


def _seconds(rung: Rung, plan: Plan, report: Report) -> _Cost | None:
    """How long the use takes with a row beside the first one that was timed; None where it was not."""
    if report.speed is None or rung.bits not in (plan.recipe.bits, 8 if rung.id.all_in_one else None):
        return None
    row = next((r for r in report.speed.rows if r.id == rung.id and r.target == plan.recipe.target), None)
    faster = _faster(row, plan.recipe.use) if row is not None else None
    return _Cost(1 / faster.value, faster.error / faster.value**2) if faster is not None else None


def times_faster(row: SpeedRow, use: Use) -> float | None:
    """How many times faster than the first row one is for a use; None where that was not timed."""
    faster = _faster(row, use)
    return faster.value if faster is not None else None


def _faster(row: SpeedRow, use: Use) -> _Cost | None:
    return _mean(times) if (times := _times(row, use)) else None


def _times(row: SpeedRow, use: Use) -> list[_Cost]:
    """How many times faster than the first row: of the use, or where nothing says which, of both alike."""
    prefill = [_Cost(one.times, one.times_stderr or 0.0) for one in row.prefill.values()]
    found = [_mean(prefill)] if prefill and use != "decode" else []
    if row.decode is not None and row.decode.times and use != "prefill":
        found.append(_Cost(row.decode.times, row.decode.times_stderr or 0.0))
    return found


def _mean(costs: Sequence[_Cost]) -> _Cost:
    """Their geometric mean; of independent errors the relative ones add up in squares."""
    value = geometric_mean(one.value for one in costs)
    return _Cost(value, value * math.hypot(*(one.error / one.value for one in costs)) / len(costs))
