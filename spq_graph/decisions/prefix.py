"""A prefix on the way to a plan: which tokens, how many, and whether it helps. Pure: measuring is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    Cause.NOT_NEEDED: "the KL budget is met without one, or none saves a fifth of the KL and leaves the source within "
    "the budget",
}


@dataclass(frozen=True, slots=True)
class Footing:
    """What a plan stands on.

    Attributes:
        prefix: what every sequence follows; None for nothing.
        seen: what calibration saw of activations there, by value.
        kls: KL with everything quantized by prefix that was tried, nats a token; none where none was.
        alone: KL of the source behind each prefix that was considered, before anything is quantized.
        refused: why there is no prefix, where one was wanted.
    """

    prefix: Prefix | None
    seen: Mapping[str, ValueRange]
    kls: Mapping[str, float] = field(default_factory=dict)
    alone: Mapping[str, float] = field(default_factory=dict)
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
        if self.refused is None and not (self.kls or self.alone):
            return []
        cause = Cause.NOT_NEEDED if self.refused is None else Cause.IMPOSSIBLE
        keys, note = tuple(site.key for site in sites), self.refused or WHY[cause]
        return [Treatment(remedy="prefix", sites=keys, applied=False, reason=cause, changes=(), note=note)]


@dataclass(frozen=True, slots=True)
class Grown:
    """A prefix that was searched.

    Attributes:
        tokens: ids; none where no prefix is worth it.
        kls: KL with everything quantized, by prefix that was tried, nats a token.
        alone: KL of the source behind each that was considered, before anything is quantized.
    """

    tokens: tuple[int, ...]
    kls: dict[str, float]
    alone: dict[str, float]


KlBehind = Callable[[tuple[int, ...]], float]
"""KL of a model against the source, by the tokens that it stands behind and the source does not, nats a token."""


def grown(candidates: Sequence[int], kl_of: KlBehind, alone_of: KlBehind, recipe: Recipe) -> Grown:
    """The prefix that grows by whichever token saves most, as long as one saves enough (CushionCache, 2406.12016).

    A prefix makes another model of the source. Where that alone costs more than the KL to aim at, nothing that is done
    behind it can make it good: such a prefix is not tried, unless there is to be one in any case.

    Args:
        candidates: token ids.
        kl_of: with everything quantized.
        alone_of: with nothing quantized.
        recipe: says how many tokens there may be, and whether there are to be any in any case.
    """
    settings = recipe.remedies.prefix
    always = settings.use == "always"
    found: tuple[int, ...] = ()
    least = kl_of(found)
    made = Grown(found, {NO_PREFIX: six(least)} if math.isfinite(least) else {}, {})
    if not always and least <= recipe.kl_aim:
        return made  # nothing needs it

    def bearable(tokens: tuple[int, ...]) -> bool:
        made.alone[named(tokens)] = six(alone_of(tokens))
        return made.alone[named(tokens)] <= recipe.kl_aim

    while len(found) < settings.most:
        longer = [(*found, token) for token in candidates if token not in found]
        kls = {tokens: kl_of(tokens) for tokens in longer if always or bearable(tokens)}
        made.kls.update({named(tokens): six(kl) for tokens, kl in kls.items() if math.isfinite(kl)})
        best = min(kls, key=lambda tokens: kls[tokens], default=found)
        asked = always and not found
        if best == found or not (asked or kls[best] * WORTH <= least):
            break
        found, least = best, kls[best]
    return replace(made, tokens=found)


def _width(seen: ValueRange) -> float:
    return max(seen.high, 0.0) - min(seen.low, 0.0)


def most_trials(recipe: Recipe, candidates: int) -> int:
    """How often a search measures at most, what stands without a prefix among it."""
    return 1 + sum(max(0, candidates - place) for place in range(recipe.remedies.prefix.most))


def named(tokens: Sequence[int]) -> str:
    """A prefix as a key: its token ids."""
    return " ".join(map(str, tokens))
