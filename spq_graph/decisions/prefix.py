"""A prefix on the way to a plan: which tokens, how many, and whether it helps. Pure: measuring is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from spq_graph.decisions.choices import six
from spq_graph.documents.changes import Prefix
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.treatment import Cause, Treatment, of_prefix
from spq_graph.documents.value_range import ValueRange
from spq_graph.terms.site import Site

# So many times as much is to be lost without a token: it takes room in every sequence, and another first token.
WORTH = 1.25
NO_PREFIX = "none"
WHY = {
    Cause.BUDGET: "with everything quantized it saves a fifth of the KL or more",
    Cause.OVERRIDE: "by hand: remedies.prefix",
    Cause.NOT_NEEDED: "the KL budget is met without one, or none that was tried saves a fifth of the KL",
}


@dataclass(frozen=True, slots=True)
class Footing:
    """What a plan stands on.

    Attributes:
        prefix: what every sequence follows; None for nothing.
        seen: what calibration saw of activations there, by value.
        kls: KL with everything quantized by prefix that was tried, nats a token; none where none was.
        refused: why there is no prefix, where one was wanted.
    """

    prefix: Prefix | None
    seen: Mapping[str, ValueRange]
    kls: Mapping[str, float] = field(default_factory=dict)
    refused: str | None = None

    def treatments(self, sites: Collection[Site], recipe: Recipe, before: Mapping[str, ValueRange]) -> list[Treatment]:
        """What the plan says of it.

        Args:
            sites: every site.
            recipe: says who wanted it.
            before: what calibration saw without it.
        """
        if self.prefix is not None:
            cause = Cause.OVERRIDE if recipe.remedies.prefix.use == "always" else Cause.BUDGET
            made = of_prefix(sites, self.prefix, cause, WHY[cause])
            both = ((before[value], seen) for value, seen in self.seen.items() if value in before)
            narrower = max((_width(one) / _width(other) for one, other in both if _width(other) > 0), default=1.0)
            return [made.model_copy(update={"narrower": six(narrower)})]
        if self.refused is None and not self.kls:
            return []
        cause = Cause.NOT_NEEDED if self.refused is None else Cause.IMPOSSIBLE
        keys, note = tuple(site.key for site in sites), self.refused or WHY[cause]
        return [Treatment(remedy="prefix", sites=keys, applied=False, reason=cause, changes=(), note=note)]


def grown(
    candidates: Sequence[int], kl_of: Callable[[tuple[int, ...]], float], recipe: Recipe
) -> tuple[tuple[int, ...], dict[str, float]]:
    """The prefix that grows by whichever token saves most, as long as one saves enough (CushionCache, 2406.12016).

    Args:
        candidates: token ids.
        kl_of: KL with everything quantized behind these tokens.
        recipe: says how many there may be, and whether there is to be one in any case.

    Returns:
        The tokens, and what was measured on the way.
    """
    settings = recipe.remedies.prefix
    found: tuple[int, ...] = ()
    least = kl_of(found)
    told = {NO_PREFIX: six(least)} if math.isfinite(least) else {}
    if settings.use == "auto" and least <= recipe.kl_aim:
        return found, told  # nothing needs it
    while len(found) < settings.most:
        kls = {(*found, token): kl_of((*found, token)) for token in candidates if token not in found}
        told |= {named(tokens): six(kl) for tokens, kl in kls.items() if math.isfinite(kl)}
        best = min(kls, key=lambda tokens: kls[tokens], default=found)
        asked = settings.use == "always" and not found
        if best == found or not (asked or kls[best] * WORTH <= least):
            break
        found, least = best, kls[best]
    return found, told


def _width(seen: ValueRange) -> float:
    return max(seen.high, 0.0) - min(seen.low, 0.0)


def most_trials(recipe: Recipe, candidates: int) -> int:
    """How often a search measures at most, what stands without a prefix among it."""
    return 1 + sum(max(0, candidates - place) for place in range(recipe.remedies.prefix.most))


def named(tokens: Sequence[int]) -> str:
    """A prefix as a key: its token ids."""
    return " ".join(map(str, tokens))
