"""How much a search by KL measures, before it is known what it finds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spq_graph.decisions.by_kl import FEWEST_MEASURED
from spq_graph.decisions.choices import most_kept
from spq_graph.decisions.kept_formats import candidates as formats
from spq_graph.documents.recipe import ROUNDED, Recipe
from spq_graph.documents.remedies import Remedies
from spq_graph.terms.absorber import Place
from spq_graph.terms.precision import Precision

# What fewer channels, and kept sites and their formats beside branches, are about measured for on all tokens; and about
# how many roles there are.
_THINNED, _KEPT, _ROLES = 3, 4, 7
_TOLD_TO = 0.5  # of a budget: 128 tokens of SmolLM2-135M said 0.0044 where 3,060 missed 0.005


@dataclass(frozen=True, slots=True)
class Effort:
    """How many choices are measured.

    Attributes:
        together: of the whole graph, on all tokens.
        roughly: of the whole graph, on a share of them.
        alone: of single sites, on that share.
        encoded: how often all weights are encoded for them: once for every set of channels and factors.
    """

    together: int
    roughly: int
    alone: int
    encoded: int


def effort(
    recipe: Recipe,
    stored: frozenset[Precision],
    *,
    sites: int,
    candidates: int,
    lossy: bool,
    peels: bool,
    smooths: bool = False,
    falls_back: bool = False,
) -> Effort:
    """What `ByKl` measures, about.

    Args:
        recipe: what is wanted.
        stored: formats of the weights in the graph.
        sites: those that count.
        candidates: sites whose ratio makes them candidates.
        lossy: whether everything in integers costs more than the KL to aim at.
        peels: whether outlier branches are tried.
        smooths: whether smoothing is tried.
        falls_back: whether scales by token, where they are tried, miss the budget too, so that static ones follow.
    """
    settings, cap = recipe.remedies.peel, most_kept(recipe, sites)
    most = max(FEWEST_MEASURED, cap)
    together, roughly, alone, tried, encoded = 1, 0, 0, min(candidates, most), 1
    by_role = _ROLES if candidates > most else 0
    by_format = len(formats(recipe, stored)) + 1 if recipe.high_precision == "auto" else 0
    if lossy and settings.use == "auto":
        # With every candidate kept, and with the costliest: a few tokens tell where that is far from enough.
        together, roughly = together + (not peels), roughly + 1 + (by_role > 0 and not peels)
    if lossy and not peels:
        roughly += by_role
    if peels:
        # What is chosen among is told apart on a share of the tokens: as many channels as will do, what each role
        # costs, and what each group of activations costs with fewer; then held against all.
        together += 1 + _THINNED + ("kl_budget" not in recipe.model_fields_set) + recipe.may_scale_by_token
        roughly += len(settings.channels) + 1 + 2 * _ROLES
        tried = min(most, sites)
        encoded += len(settings.channels) + 1 + _THINNED  # of each role with fewer channels its own weights
    again = falls_back and peels and recipe.may_scale_by_token
    if again:  # branches are offered once more, at static scales
        together, roughly = together + 1, roughly + len(settings.channels) + 1
        encoded += len(settings.channels)
    if smooths:
        # Every kind of place, and those that are left beside the one that saves most; of the first of them, each time,
        # the exponents that are not in the middle. A kind reads a part of the weights. Whether they help is asked
        # on all tokens, and once more when sites are kept.
        further = len(recipe.remedies.smooth.alpha) - 1
        together, roughly = together + 2, roughly + 1 + 2 * (len(Place) + further)
        encoded += 3 + further
    if lossy and (again or not (peels and recipe.may_scale_by_token)):  # which leave no site to keep
        alone += tried if cap else 0  # where none may be kept, none is measured
        if peels:
            together, roughly = together + _KEPT, roughly + by_format
        else:
            together += 1 + math.ceil(math.log2(1 + min(cap, tried))) + by_format
        if recipe.high_precision == "fp8":
            alone += len(ROUNDED) * min(cap, tried)
    return Effort(together, roughly, alone, encoded)


def smooths(recipe: Recipe, *, missed: bool, falls_back: bool = False) -> bool:
    """Whether smoothing is tried.

    Args:
        recipe: what is wanted.
        missed: whether kept sites alone do not meet the budget.
        falls_back: whether scales by token do not, either.
    """
    use = recipe.remedies.smooth.use
    return use == "always" or (use == "auto" and missed and (falls_back or not recipe.may_scale_by_token))


def all_by_token(recipe: Recipe) -> Recipe:
    """The recipe with nothing kept, scales by token throughout, and branches of the most channels where it has any."""
    update: dict[str, object] = {"scales": "by_token", "spike_ratio": math.inf}
    if recipe.remedies.peel.use != "never":
        update["remedies"] = Remedies(peel=recipe.remedies.peel.model_copy(update={"use": "always"}))
    return recipe.model_copy(update=update)


def chance_to_fall_back(recipe: Recipe, by_token: float | None) -> float:
    """How likely it is, from 0 to 1, that scales by token miss the budget.

    Args:
        recipe: what is wanted.
        by_token: KL with them and the most channels in branches, by a few tokens, which tell it to about a half;
            None where nobody tried.
    """
    if not recipe.may_scale_by_token:
        return 0.0
    if by_token is None:
        return 0.5
    return min(max((by_token / recipe.kl_budget - 1.0 + _TOLD_TO) / (2 * _TOLD_TO), 0.0), 1.0)
