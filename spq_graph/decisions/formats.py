"""What kept sites become, settled by measured KL. Pure: measuring is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from spq_graph.decisions.choices import Choice, assigned, six
from spq_graph.decisions.kept_formats import candidates, pick, tiers_of
from spq_graph.decisions.oracle import Oracle, or_infinite
from spq_graph.documents.recipe import ROUNDED, Recipe
from spq_graph.terms.precision import Precision

KlOf = Callable[[Mapping[str, Precision]], float]
# What a few tokens say of two formats may err by so much.
_ALIKE = 1.25


@dataclass(frozen=True, slots=True)
class Formats:
    """The formats that a recipe leaves open.

    Attributes:
        choices: what is known of every site, by key; what is found is noted there.
        recipe: what is wanted.
        oracle: measures on all tokens.
        roughly: measures on few, scaled to all.
    """

    choices: dict[str, Choice]
    recipe: Recipe
    oracle: Oracle
    roughly: KlOf

    def settle(
        self, names: Sequence[str], everywhere: float, body: Recipe, *, whole: bool = False
    ) -> dict[str, float] | None:
        """Measure what kept sites may become, where the recipe leaves that open, and give it to them.

        Args:
            names: what is kept.
            everywhere: KL with none kept.
            body: the recipe with the budget that is left for them.
            whole: whether that may take all of the budget.

        Returns:
            KL of all kept sites in each format, and as the graph has them; None where nothing was compared.
        """
        kept = [c for key, c in self.choices.items() if key in names or c.wants_high]
        compared = None
        if not kept or self.recipe.high_precision not in ("auto", "fp8"):
            return None
        if self.recipe.high_precision == "fp8":
            self._each_in_fp8(kept)
        else:
            compared = self._together(kept, names, everywhere, body, whole=whole)
        for choice in kept:
            if choice.wants_high:
                choice.precision = choice.high
        return compared

    def _each_in_fp8(self, kept: Sequence[Choice]) -> None:
        """Every site gets the format of FP8 whose KL is the smaller, alone."""
        recipe = self.recipe
        for choice in kept:
            errors = {p: six(or_infinite(self.oracle, {choice.site.key: p})) for p in ROUNDED if recipe.allows(p)}
            choice.set_high(min(errors, key=lambda p: errors[p]), recipe)
            choice.formats = {p.value: e for p, e in errors.items() if math.isfinite(e)}

    def _together(
        self, kept: Sequence[Choice], names: Sequence[str], everywhere: float, body: Recipe, *, whole: bool
    ) -> dict[str, float]:
        """All of them get one format."""
        recipe, choices = self.recipe, self.choices
        stored = frozenset(c.stored for c in kept)
        by = self.roughly if whole else self.oracle  # before sites are chosen, a few tokens tell formats apart
        errors = {p: six(or_infinite(by, assigned(choices, names, recipe, p))) for p in candidates(recipe, stored)}
        as_is = by(assigned(choices, names, recipe))
        best = pick(errors, as_is, everywhere, body, whole=whole)
        if whole and best is not None:
            best = self._nearest(best, errors, names)
        if best is not None:
            for choice in kept:
                choice.set_high(best, recipe)
        told = {**{p.value: e for p, e in errors.items()}, "as_is": six(as_is)}
        return {name: e for name, e in told.items() if math.isfinite(e)}

    def _nearest(self, best: Precision, errors: Mapping[Precision, float], names: Sequence[str]) -> Precision:
        """The best on all tokens of the formats that a few did not tell apart from it."""
        tier = next(tier for tier in tiers_of(self.recipe, whole=True) if best in tier)
        rivals = [p for p in tier if errors.get(p, math.inf) <= _ALIKE * errors[best]]
        if len(rivals) == 1:
            return best
        exact = {p: or_infinite(self.oracle, assigned(self.choices, names, self.recipe, p)) for p in rivals}
        return min(rivals, key=lambda p: exact[p])
