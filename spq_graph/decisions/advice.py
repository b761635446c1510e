"""What is left to try where a plan falls short: only what changes its outcome when it is done."""

from __future__ import annotations

import math
from collections.abc import Iterator

from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.verdict import Advice

MOST_BITS = 8


def advise(plan: Plan, *, lossy: bool = False) -> list[Advice]:
    """What is left to try, the most promising first.

    Args:
        plan: what was decided.
        lossy: whether the perplexity that was measured is too high, even if the budget of KL is met.
    """
    found: list[Advice] = []
    if not plan.budget_met:
        found += _by_ratio(plan) if plan.search.rule != "auto" else _by_kl(plan)
    if (lossy or not plan.budget_met) and plan.recipe.bits < MOST_BITS and plan.integer_sites:
        found.append(
            Advice(
                say=f"{MOST_BITS} bits round {2 ** (MOST_BITS - plan.recipe.bits)} times finer",
                recipe={"bits": MOST_BITS},
            )
        )
    return found


def why_not_met(plan: Plan) -> str:
    """That the budget was not met, and what was kept of what might have been."""
    search, recipe = plan.search, plan.recipe
    kept = _kept_by_rule(plan)
    if search.rule != "auto":
        return (
            f"{search.candidates} sites have a max/median ratio above {recipe.candidate_ratio:g}, and {search.cap} of "
            f"them are kept, those of the highest (max_kept = {recipe.max_kept:g})"
        )
    said = (
        f"the KL budget of {recipe.kl_budget:g} nats was not met: KL {_short(search.kl)} with {kept} of at most "
        f"{search.cap} sites kept"
    )
    more = min(search.cap, search.candidates)
    if kept < more and search.kl_at_cap is not None:
        wins = "no more" if search.kl_at_cap >= (search.kl or 0.0) else f"KL {_short(search.kl_at_cap)}"
        said += f", and {wins} with {more} (recovery = {recipe.recovery:g} stops where the rest wins little)"
    return said


def _by_ratio(plan: Plan) -> Iterator[Advice]:
    share = _share_for(plan, plan.search.candidates)
    yield Advice(say=f"all {plan.search.candidates} of them are kept", recipe={"max_kept": share})


def _by_kl(plan: Plan) -> Iterator[Advice]:
    search, recipe = plan.search, plan.recipe
    all_kept, at_cap, now = search.kl_candidates, search.kl_at_cap, search.kl
    if all_kept is not None and all_kept <= recipe.kl_budget and search.candidates > search.cap:
        say = f"with all {search.candidates} candidates kept KL is {_short(all_kept)}, within the budget"
        yield Advice(say=say, recipe={"max_kept": _share_for(plan, search.candidates)})
    elif _could_keep_all(plan):
        say = "every site may be kept, and as few are as the budget asks for"
        yield Advice(say=say, recipe={"candidate_ratio": 0.0, "max_kept": 1.0})
    if (
        at_cap is not None
        and now is not None
        and _kept_by_rule(plan) < min(search.cap, search.candidates)
        and at_cap < now
    ):
        say = f"as many are kept as win something back: KL {_short(at_cap)}, still above the budget"
        yield Advice(say=say, recipe={"recovery": 1.0})
    if at_cap is not None and search.kl_everywhere is not None:
        budget = _rounded_up(min(at_cap, search.kl_everywhere) / (1.0 - recipe.kl_margin))
        yield Advice(say="what this recipe can reach, with its margin, is accepted", recipe={"kl_budget": budget})
    elif recipe.high_precision != "auto":
        say = f"what kept sites lose in {recipe.high_precision} is measured beside other formats"
        yield Advice(say=say, recipe={"high_precision": "auto"})


def _could_keep_all(plan: Plan) -> bool:
    """Whether the budget is sure to be met if any site may be kept: none is held in integers by hand."""
    recipe = plan.recipe
    by_hand = any(s.precision.bits is not None and s.reason is Reason.OVERRIDE for s in plan.sites)
    limited = recipe.candidate_ratio > 0 or recipe.max_kept < 1
    return recipe.high_precision == "auto" and limited and not by_hand


def _kept_by_rule(plan: Plan) -> int:
    return sum(s.kept and s.evidence.rank is not None for s in plan.sites)


def _share_for(plan: Plan, sites: int) -> float:
    """The smallest share in hundredths of which the cap holds so many sites, beside those that are kept by hand."""
    counted = len(plan.counted)
    wanted = sites + sum(s.kept and s.reason is Reason.OVERRIDE for s in plan.sites)
    return next((n / 100 for n in range(100) if math.floor(n / 100 * counted) >= wanted), 1.0)


def _rounded_up(value: float) -> float:
    """Two significant digits, never below the value."""
    step = 10.0 ** (math.floor(math.log10(value)) - 1) if value > 0 else 1.0
    return float(f"{math.ceil(value / step) * step:.6g}")


def _short(kl: float | None) -> str:
    return "unknown" if kl is None else f"{kl:.3g}"
