"""Branches lose channels where that saves the most bytes for what it costs, within the aim and in few measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from spq_graph.decisions.branches import Branches, everywhere, reach
from spq_graph.decisions.choices import Choice, start
from spq_graph.decisions.thinning import MOST_MEASURED, thin
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.value_range import ValueRange
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site

CHANNELS = 256
COUNTS = (4, 16)


def seen(seed: int) -> ValueRange:
    """Channels whose sizes fall off steadily, so that every channel more in a branch narrows what is left."""
    high = np.random.default_rng(seed).permutation(100 * 0.9 ** np.arange(CHANNELS)).astype(np.float32) + 1
    maxima = np.ones((1, 100), dtype=np.float32)
    maxima[0, 3] = high.max()
    ids, mask = np.full((1, 100), 7), np.ones((1, 100), dtype=np.int64)
    return ValueRange.observe(-maxima, maxima, (-high, high), ids, mask)


class Case:
    """Sites of two roles: what a unit of reach squared costs, and how many columns a row of a branch has."""

    def __init__(self, costs: Mapping[Role, float], columns: Mapping[Role, int], budget: float) -> None:
        self.recipe = Recipe.model_validate({"kl_budget": budget, "remedies": {"peel": {"channels": COUNTS}}})
        self.costs, self.exact = costs, 0
        self.choices: dict[str, Choice] = {}
        for number, role in enumerate(r for r in costs for _ in range(6)):
            key, shape = f"{role}{number}", (CHANNELS, columns[role])
            one = Site(key=key, node=key, role=role, layer=0, shape=shape, input=f"in_{key}")
            self.choices[key] = start(one, Precision.FP32, seen(number), self.recipe)
        self.whole = everywhere(self.choices.values(), self.recipe, COUNTS[-1])

    def kl(self, branches: Branches) -> float:
        return math.fsum(self.costs[c.site.role] * reach(c, branches) ** 2 for c in self.choices.values())

    def exactly(self, branches: Branches) -> float:
        self.exact += 1
        return self.kl(branches)

    def run(self, roughness: float = 1.0) -> dict[Role, set[int]]:
        precisions = {key: c.precision for key, c in self.choices.items()}
        self.found = thin(
            self.choices, self.whole, precisions, self.recipe, lambda b: roughness * self.kl(b), self.exactly
        )
        left: dict[Role, set[int]] = {}
        for choice in self.choices.values():
            branch = self.found.get(choice.site.input)
            left.setdefault(choice.site.role, set()).add(0 if branch is None else len(branch.change.channels))
        return left


EQUAL = {Role.GLU_UP: 1e-7, Role.GLU_DOWN: 1e-7}


def test_the_wide_lose_channels_before_the_narrow() -> None:
    case = Case(EQUAL, {Role.GLU_UP: 900, Role.GLU_DOWN: 10}, budget=1.0)
    base = case.kl(case.whole)
    case.recipe = case.recipe.model_copy(update={"kl_budget": base * 4 / 0.8})
    left = case.run()
    assert left[Role.GLU_DOWN] == {16}
    assert min(left[Role.GLU_UP]) < 16
    assert case.kl(case.found) <= case.recipe.kl_aim


def test_the_cheap_lose_channels_before_the_costly() -> None:
    case = Case({Role.GLU_UP: 1e-9, Role.GLU_DOWN: 1e-7}, dict.fromkeys(EQUAL, 64), budget=1.0)
    base = case.kl(case.whole)
    case.recipe = case.recipe.model_copy(update={"kl_budget": base * 1.2 / 0.8})
    left = case.run()
    assert left[Role.GLU_DOWN] == {16}
    assert max(left[Role.GLU_UP]) < 16


@pytest.mark.parametrize("roughness", [0.2, 1.0, 5.0])
def test_most_of_what_the_aim_allows_is_used_though_few_tokens_mislead(roughness: float) -> None:
    case = Case(EQUAL, dict.fromkeys(EQUAL, 64), budget=1.0)
    base = case.kl(case.whole)
    case.recipe = case.recipe.model_copy(update={"kl_budget": base * 2 / 0.8})
    case.run(roughness)
    assert base * 1.5 < case.kl(case.found) <= case.recipe.kl_aim
    assert case.exact <= 1 + MOST_MEASURED


def test_beyond_the_aim_nothing_is_taken() -> None:
    case = Case(EQUAL, dict.fromkeys(EQUAL, 64), budget=1e-12)
    case.run()
    assert case.found == case.whole
    assert case.exact == 1


def test_what_costs_nothing_ends_with_the_fewest() -> None:
    case = Case(EQUAL, dict.fromkeys(EQUAL, 64), budget=1e3)
    assert case.run() == {key: {COUNTS[0]} for key in EQUAL}


def test_what_is_kept_reads_no_branch_and_saves_nothing() -> None:
    case = Case(EQUAL, dict.fromkeys(EQUAL, 64), budget=1e3)
    precisions = dict.fromkeys(case.choices, Precision.W8A8_BLOCK)
    assert thin(case.choices, case.whole, precisions, case.recipe, case.kl, case.exactly) == case.whole
