"""How many of the costliest sites to keep: the smallest number that will do. Pure: measuring is passed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spq_graph.documents.recipe import Recipe

# How near below its goal a KL is near enough, where what so many kept sites win is known about.
_NEAR = 0.03


def smallest_prefix(
    kl_of: Callable[[int], float], cap: int, recipe: Recipe, won: Sequence[float] | None = None
) -> tuple[int, bool]:
    """The smallest number of kept sites that meets the budget, or wins back the asked share; and whether it is met.

    Args:
        kl_of: KL with so many kept.
        cap: most that may be kept.
        recipe: budget, margin and recovery.
        won: about what so many kept win back, in any unit, [cap + 1]: then a number within a few percent of the goal is
            enough, and few are measured. None for the very smallest.
    """
    everywhere, best = kl_of(0), kl_of(cap)
    met = min(everywhere, best) <= recipe.kl_budget
    if best <= recipe.kl_aim:
        goal = recipe.kl_aim
    elif everywhere <= recipe.kl_budget or best >= everywhere:
        return 0, met  # met as it is, or keeping wins nothing back: better not to pay for it
    else:
        goal = recipe.kl_budget if met else everywhere - recipe.recovery * (everywhere - best)
    low, high = (0, everywhere), (cap, best)  # the KL of the one is above the goal, that of the other is not
    while high[0] - low[0] > 1 and not (won is not None and high[1] >= (1 - _NEAR) * goal):
        middle = (low[0] + high[0]) // 2 if won is None else _between(low, high, goal, won)
        kl = kl_of(middle)
        low, high = (low, (middle, kl)) if kl <= goal else ((middle, kl), high)
    return high[0], met


def _between(low: tuple[int, float], high: tuple[int, float], goal: float, won: Sequence[float]) -> int:
    """Where the KL meets the goal if it falls between two numbers as `won` rises."""
    share = (low[1] - goal) / (low[1] - high[1]) if low[1] > high[1] else 0.5
    wanted = won[low[0]] + share * (won[high[0]] - won[low[0]])
    found = next((n for n in range(low[0], high[0]) if won[n] >= wanted), high[0])
    return min(max(found, low[0] + 1), high[0] - 1)
