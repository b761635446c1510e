"""The precision that kept sites get, by rule where nothing was measured and by measured error where it was."""

from __future__ import annotations

import math
from collections.abc import Mapping

from spq_graph.documents.recipe import Recipe
from spq_graph.terms.precision import Precision

# E4M3 spans 2^-9 to 448 and holds a token at its full precision down to 2^-6: beyond this max/median ratio the common
# tokens fall among its subnormals, and the wider range of E5M2 is worth its lost bit.
E4M3_RATIO = 5000.0


def by_rule(recipe: Recipe, stored: Precision, ratio: float | None) -> Precision:
    """The precision of a kept site before anything was measured.

    Args:
        recipe: what the user wants.
        stored: format of the weight in the graph, which `auto` begins with.
        ratio: max/median of its input's token maxima, which settles `fp8`; None where it is not known.
    """
    match recipe.high_precision:
        case "auto":
            return stored
        case "fp8":
            return Precision.FP8_E4M3 if ratio is None or ratio <= E4M3_RATIO else Precision.FP8_E5M2
        case named:
            return Precision(named)


def candidates(recipe: Recipe, stored: frozenset[Precision]) -> tuple[Precision, ...]:
    """What `auto` measures beside the formats that the graph has, the cheaper first."""
    tiers = tiers_of(recipe)
    return tuple(p for tier in tiers for p in tier if p is not Precision.FP16 or Precision.FP32 in stored)


def tiers_of(recipe: Recipe, *, whole: bool = False) -> tuple[tuple[Precision, ...], ...]:
    """What kept sites may become, in the order of what it costs.

    Args:
        recipe: what the user wants.
        whole: whether as many are kept as may be, as beside outlier branches: integers by token, which take the bytes
            and the time of all other sites, then come first in a balanced use, too.
    """
    tiers = recipe.profile.tiers_for(recipe.use)
    if not whole or recipe.use != "balanced":
        return tiers
    by_token = tuple(p for tier in tiers for p in tier if p.row.by_token)
    others = tuple(tuple(p for p in tier if p not in by_token) for tier in tiers)
    return (by_token, *others) if by_token else others


def pick(
    measured: Mapping[Precision, float], as_is: float, everywhere: float, recipe: Recipe, *, whole: bool = False
) -> Precision | None:
    """The cheapest format whose error the numbers allow, the most exact of those that cost the same.

    A format may cost what the budget leaves, or as much of what keeping wins back as the recipe's `recovery` gives
    away; never the budget itself where the graph's own format meets it.

    Args:
        measured: KL with all kept sites in a format, nats a token.
        as_is: KL with them as the graph has them.
        everywhere: KL with none kept.
        recipe: budget, margin and recovery.
        whole: whether a format may take all of the budget, margin and all: where it is measured before sites are
            chosen, with as many kept as may be; as `tiers_of` has it.

    Returns:
        None for the formats that the graph has.
    """
    won = everywhere - as_is if math.isfinite(everywhere) else 0.0
    allowed = as_is + (1.0 - recipe.recovery) * max(0.0, won)
    if as_is <= recipe.kl_budget:
        allowed = min(allowed, recipe.kl_budget)
    limit = max(recipe.kl_budget if whole else recipe.kl_aim, allowed)
    for tier in tiers_of(recipe, whole=whole):
        there = [p for p in tier if p in measured]
        there = [p for p in there if math.isfinite(measured[p])]
        if there and measured[best := min(there, key=lambda p: measured[p])] <= limit:
            return best
    return None
