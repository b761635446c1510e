"""How much a search by KL measures, before it is known what it finds."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spq_graph.decisions.by_kl import FEWEST_MEASURED
from spq_graph.decisions.kept_formats import candidates as formats
from spq_graph.documents.recipe import ROUNDED, Recipe
from spq_graph.terms.precision import Precision


@dataclass(frozen=True, slots=True)
class Effort:
    """How many choices are measured: of the whole graph on all tokens, and of single sites on a share of them."""

    together: int
    alone: int


def effort(
    recipe: Recipe,
    stored: frozenset[Precision],
    *,
    sites: int,
    activations: int,
    candidates: int,
    lossy: bool,
    peels: bool,
) -> Effort:
    """What `ByKl` measures, about.

    Args:
        recipe: what is wanted.
        stored: formats of the weights in the graph.
        sites: those that count.
        activations: that they read.
        candidates: sites whose ratio makes them candidates.
        lossy: whether everything in integers costs more than the KL to aim at.
        peels: whether outlier branches are tried.
    """
    settings, cap = recipe.remedies.peel, math.floor(recipe.max_kept * sites)
    together, alone, tried = 1, 0, candidates
    if lossy and settings.use == "auto":
        together += 1  # with every candidate kept
    if peels:
        # As many channels as will do; and of activations with more than the fewest, which of them need these: that is
        # looked for on a share of the tokens, and what was found is held against all.
        together += len(settings.channels) + 1
        alone += math.ceil(math.log2(1 + activations))
        tried = min(max(FEWEST_MEASURED, 2 * cap), sites)
    if lossy:
        alone += tried
        halvings = math.ceil(math.log2(1 + min(cap, tried)))
        together, alone = (together + 3, alone + halvings) if peels else (together + 1 + halvings, alone)
        if recipe.high_precision == "auto":
            together += len(formats(recipe, stored)) + 1
        elif recipe.high_precision == "fp8":
            alone += len(ROUNDED) * min(cap, tried)
    return Effort(together, alone)
