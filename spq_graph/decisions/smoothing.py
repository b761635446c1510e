"""Smoothing on the way to a plan: which factors each kind of place gets, and what the plan says of them. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from spq_graph.decisions.branches import NONE, Branches, everywhere
from spq_graph.decisions.choices import Choice, assigned, six
from spq_graph.decisions.oracle import Oracle, or_infinite
from spq_graph.documents.changes import Scale
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.treatment import Cause, Treatment
from spq_graph.documents.value_range import ValueRange
from spq_graph.remedies.smooth import UNSCALED, Scales, scaled, smoothed
from spq_graph.terms.absorber import Absorbers, Place

# So many times as much is to be lost without it.
WORTH = 1.25
WHY = {
    Cause.BUDGET: "keeping sites alone does not meet the KL budget",
    Cause.OVERRIDE: "by hand: remedies.smooth",
    Cause.NOT_NEEDED: "no site that reads it is in integers",
}


@dataclass(frozen=True, slots=True)
class Smoothing:
    """What can be smoothed, and by which exponents.

    Attributes:
        choices: every site, by key.
        recipe: the exponents to try.
        absorbers: what takes factors.
    """

    choices: dict[str, Choice]
    recipe: Recipe
    absorbers: Absorbers

    def at(self, alphas: Mapping[Place, float]) -> dict[str, Scale]:
        """The factors of every activation of these places that a site reads in integers, by their exponents."""
        found: dict[str, Scale] = {}
        for absorber in (a for a in self.absorbers.found if a.place in alphas):
            reader = self._reader(absorber.sites)
            if reader is None or reader.seen is None or (rows := self.absorbers.rows(absorber)) is None:
                continue
            change = smoothed(absorber, reader.seen, rows, alphas[absorber.place])
            if change is not None:
                found[absorber.value] = change
        return found

    def by_hand(self) -> dict[str, Scale]:
        """Factors that nothing was measured for: by the exponent in the middle."""
        alphas = self.recipe.remedies.smooth.alpha
        return self.at(dict.fromkeys(Place, alphas[len(alphas) // 2]))

    def settle(self, oracle: Oracle, single: Oracle) -> tuple[bool, dict[str, float]]:
        """Give every activation that takes some the factors that do best, with nothing kept.

        Of all kinds of place the one that saves most comes first; then the others, measured beside it: while the
        costliest is as it was, what another one saves is hidden. Kinds are told apart by the exponent in the middle,
        and from there on that of the first of them is sought, as long as the next one saves more. Where outlier
        branches are to follow, the others are measured beside some: most of what they save, branches save as well, and
        no weight loses by those. A place has factors where that saves a fifth of the KL: what it wins of activations it
        costs weights, and text that was not measured is other text. Where smoothing is asked for in any case, each has
        some.

        Args:
            oracle: measures on all tokens whether it helps; without branches.
            single: measures on fewer which exponent does.

        Returns:
            Whether there are factors now, and what was measured on the way, by place and exponent.
        """
        precisions = assigned(self.choices, [], self.recipe)
        always = self.recipe.remedies.smooth.use == "always"
        told: dict[str, float] = {}

        def with_factors(scales: Scales) -> None:
            scale(self.choices.values(), scales)
            oracle.scales = single.scales = scales

        def measured(alphas: Mapping[Place, float]) -> float:
            with_factors(self.at(alphas))
            single.branches = self._beside() if taken else NONE
            return or_infinite(single, precisions)

        taken = dict[Place, float]()
        before, least = oracle(precisions), measured({})
        left = dict.fromkeys(a.place for a in self.absorbers.found)

        def kl_of(place: Place, alpha: float) -> float:
            kl = measured(taken | {place: alpha})
            if math.isfinite(kl):
                told[f"{place} {alpha:g}"] = six(kl)
            return kl

        while left:
            place, alpha, kl = self._cheapest(left, kl_of)
            if not (always or kl * WORTH <= least):
                break
            taken[place], least = alpha, kl
            del left[place]
            if len(taken) == 1 and left:
                least = measured(taken)
        with_factors(self.at(taken))
        single.branches = NONE
        helps = bool(oracle.scales) and (always or oracle(precisions) * WORTH <= before)
        if not helps:
            with_factors(UNSCALED)
        return helps, told

    def _cheapest(self, places: Iterable[Place], kl_of: Callable[[Place, float], float]) -> tuple[Place, float, float]:
        """The kind of place that costs least with the exponent in the middle; the exponent that does there; the KL."""
        alphas = self.recipe.remedies.smooth.alpha
        at = len(alphas) // 2
        kl, place = min((kl_of(place, alphas[at]), place) for place in places)
        for step in (1, -1):
            while 0 <= at + step < len(alphas) and (further := kl_of(place, alphas[at + step])) < kl:
                at, kl = at + step, further
        return place, alphas[at], kl

    def _beside(self) -> Branches:
        """Branches of few channels, where the recipe allows any, by the ranges that factors leave."""
        peel = self.recipe.remedies.peel
        return NONE if peel.use == "never" else everywhere(self.choices.values(), self.recipe, peel.channels[:2][-1])

    def _reader(self, sites: Iterable[str]) -> Choice | None:
        return next((c for key in sites if (c := self.choices.get(key)) and c.precision.takes_branch), None)


def take_back(
    choices: dict[str, Choice], recipe: Recipe, oracles: Sequence[Oracle], kept: Collection[str]
) -> dict[str, float]:
    """Leave channels as they are after all, where kept sites and branches do as well without factors.

    Factors are sought with nothing kept. A site that is kept later needs none, and what they won of its activation is
    gone, while other weights still pay for it. On other text they do worse than here, where ranges fit.

    Args:
        choices: every site, by key.
        recipe: what is wanted.
        oracles: what the search measures by; the first says on all tokens whether they are needed. Their factors and
            branches are changed.
        kept: keys of the sites that are.

    Returns:
        What was measured: KL with `all` factors and with `none`; nothing where that is no question.
    """
    oracle = oracles[0]
    scales, branches = oracle.scales, oracle.branches
    if recipe.remedies.smooth.use != "auto" or not scales or not (kept or branches):
        return {}

    def have(factors: Scales, beside: Branches) -> None:
        scale(choices.values(), factors)
        for one in oracles:
            one.scales, one.branches = factors, beside

    precisions = assigned(choices, kept, recipe)
    most = max((len(branch.change.channels) for branch in branches.values()), default=0)
    kl = or_infinite(oracle, precisions)
    scale(choices.values(), UNSCALED)  # whose ranges the branches are to have
    have(UNSCALED, everywhere(choices.values(), recipe, most) if most else NONE)
    without = or_infinite(oracle, precisions)
    if kl < without:
        have(scales, branches)
    return {name: six(found) for name, found in (("all", kl), ("none", without)) if math.isfinite(found)}


def scale(choices: Iterable[Choice], scales: Scales) -> None:
    """Note at every site what its activation is with these factors."""
    seen: dict[str, ValueRange] = {}
    for choice in choices:
        change = scales.get(choice.site.input)
        if change is None or choice.seen is None:
            choice.smooth = None
            continue
        if change.value not in seen:
            seen[change.value] = scaled(choice.seen, change.exponents)
        choice.smooth = seen[change.value]


def treatments(
    choices: Mapping[str, Choice], scales: Scales, absorbers: Absorbers, branches: Branches, cause: Cause
) -> list[Treatment]:
    """What the plan says of its factors, in the order of their activations, and where there can be none, and why.

    Args:
        choices: every site, by key.
        scales: what was settled.
        absorbers: what takes factors.
        branches: outlier branches beside them.
        cause: of those that are applied.
    """
    if not scales:
        return []
    applied = [
        _applied([choices[key] for key in a.sites if key in choices], scales[a.value], branches, cause)
        for a in absorbers.found
        if a.value in scales
    ]
    refused = [
        Treatment(remedy="smooth", sites=o.sites, applied=False, reason=Cause.IMPOSSIBLE, changes=(), note=o.why)
        for o in absorbers.others
        if any(key in choices and choices[key].precision.takes_branch for key in o.sites)
    ]
    return applied + refused


def _applied(reading: Sequence[Choice], change: Scale, branches: Branches, cause: Cause) -> Treatment:
    integer = any(choice.precision.takes_branch for choice in reading)
    cause = cause if integer else Cause.NOT_NEEDED
    seen, branch = reading[0].seen, branches.get(change.value)
    assert seen is not None  # the factors are made of it
    if branch is not None:
        inner = [c for c in range(seen.channel_low.size) if c not in set(branch.change.channels)]
        peeled = float(seen.channel_low[inner].min()), float(seen.channel_high[inner].max())
        change = change.model_copy(update={"peeled": peeled})
    whole, left = max(seen.high, 0.0) - min(seen.low, 0.0), max(change.high, 0.0) - min(change.low, 0.0)
    return Treatment(
        remedy="smooth",
        sites=tuple(choice.site.key for choice in reading),
        applied=integer,
        reason=cause,
        changes=(change,),
        narrower=six(whole / left) if left > 0 else None,
        note=WHY[cause],
    )
