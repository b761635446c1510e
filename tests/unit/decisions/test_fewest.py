"""How many to keep: the smallest number that will do, or nearly that in few measurements."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spq_graph.decisions.fewest import smallest_prefix
from spq_graph.documents.recipe import Recipe

COSTS = st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=60).map(lambda costs: sorted(costs, reverse=True))


class Kl:
    """What is not kept costs its cost."""

    def __init__(self, costs: list[float]) -> None:
        self.costs, self.asked = costs, set[int]()

    def __call__(self, kept: int) -> float:
        self.asked.add(kept)
        return sum(self.costs[kept:])


@given(COSTS, st.floats(1e-3, 0.1), st.floats(0.5, 2.0))
def test_what_is_known_of_each_says_where_to_look(costs: list[float], budget: float, scale: float) -> None:
    recipe, plain, led = Recipe(kl_budget=budget), Kl(costs), Kl(costs)
    smallest, met = smallest_prefix(plain, len(costs), recipe)
    won = [0.0, *accumulate(scale * cost for cost in costs)]
    found, met_too = smallest_prefix(led, len(costs), recipe, won)
    assert met is met_too is True  # with all kept nothing is lost
    assert found >= smallest
    assert sum(costs[found:]) <= recipe.kl_aim
    # Only what would still be within a few percent of the aim is kept beyond the smallest number.
    assert found == smallest or sum(costs[found:]) >= 0.97 * recipe.kl_aim


def test_few_are_measured() -> None:
    led = Kl([1e-4] * 1000)
    found, _ = smallest_prefix(led, 1000, Recipe(kl_budget=0.05), [n * 1e-4 for n in range(1001)])
    assert found == pytest.approx(600, abs=12)
    assert len(led.asked) <= 4
