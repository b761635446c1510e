"""Fewer channels for outlier branches, where that saves most for what it costs. Pure: measuring is passed in."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from spq_graph.decisions.branches import Branches, everywhere, reach
from spq_graph.decisions.choices import Choice
from spq_graph.documents.recipe import Recipe
from spq_graph.remedies.peel import Peeled
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role

KlOf = Callable[[Branches], float]
"""KL of the plan with these branches, nats a token."""
# So often the plan is measured on all tokens at most; what is predicted follows every measurement.
MOST_MEASURED = 4
# How near below the aim a KL is near enough: its standard error is about half of that.
_NEAR = 0.08
# Of the KL to stay within: what a group costs at least, since measured differences of zero are noise.
_LEAST = 1e-3
_BYTES = 2  # of a number in a branch's rows


@dataclass(frozen=True, slots=True)
class _Step:
    """One activation gets the next smaller branch.

    Attributes:
        value: the activation.
        group: the role of what reads it.
        to: its branch then.
        loss: what that adds to the square of its reach: rounding costs in proportion to it, by a factor that all
            activations of a group share.
        saves: bytes of rows.
    """

    value: str
    group: Role
    to: Peeled
    loss: float
    saves: int


def thin(
    choices: Mapping[str, Choice],
    whole: Branches,
    precisions: Mapping[str, Precision],
    recipe: Recipe,
    roughly: KlOf,
    exactly: KlOf,
) -> Branches:
    """Take the next smaller number of channels wherever the aim still holds, first where it saves most for its KL.

    Each group of activations is thinned and measured; what any step costs follows from that and from its range. As many
    steps are taken as the sum of what they cost allows, which is then measured; where it does not hold, as many as what
    was measured on both sides of the aim says, until the KL is near below it.

    Args:
        choices: every site, by key.
        whole: branches to begin with.
        precisions: of the plan, by site key.
        recipe: counts of channels, and the KL to aim at.
        roughly: measures on few tokens, scaled to all.
        exactly: measures on all tokens.
    """
    aim, base = recipe.kl_aim, exactly(whole)
    if not base <= aim:
        return whole
    readers: dict[str, list[Choice]] = {}
    for choice in choices.values():
        if precisions.get(choice.site.key, choice.stored).takes_branch:
            readers.setdefault(choice.site.input, []).append(choice)
    steps = [step for v, reading in readers.items() if v in whole for step in _steps(reading, whole[v], recipe)]
    if not steps:
        return whole
    order = _by_worth(steps, _costs(steps, whole, roughly, aim))
    total = [0.0, *accumulate(cost for cost, _ in order)]
    # So many steps stay within the aim, and so many do not; and what is predicted of a KL of 1.
    low, high, expected, goal = (0, base), (len(order) + 1, math.inf), 1.0, aim
    for turn in range(MOST_MEASURED):
        count = bisect_right(total, total[low[0]] + (goal - low[1]) * expected) - 1
        if turn == 0 or high[1] < math.inf:
            count = min(max(count, low[0] + 1), high[0] - 1)  # what is predicted is held against something
        if count <= low[0] or low[1] >= (1 - _NEAR) * aim:
            break
        kl = exactly(_taken(whole, [step for _, step in order[:count]]))
        before = low
        if kl <= aim:
            low = count, kl
        else:
            high, goal = (count, kl), (1 - _NEAR / 2) * aim
        start, end = (low, high) if high[1] < math.inf else (before, low)
        expected = (total[end[0]] - total[start[0]]) / max(end[1] - start[1], _LEAST * aim)
    return _taken(whole, [step for _, step in order[: low[0]]])


def _steps(reading: Sequence[Choice], current: Peeled, recipe: Recipe) -> Iterator[_Step]:
    """From the branch of an activation down, step by step; `reading` are the sites that it serves."""
    first, value = reading[0], reading[0].site.input
    columns = sum(choice.site.shape[1] for choice in reading)
    for count in sorted(recipe.remedies.peel.channels, reverse=True):
        held = len(current.change.channels)
        if count >= held:
            continue
        smaller = everywhere([first], recipe, count).get(value)
        if smaller is None:
            return
        loss = max(reach(first, {value: smaller}) ** 2 - reach(first, {value: current}) ** 2, 0.0)
        yield _Step(value, first.site.role, smaller, loss, _BYTES * columns * (held - len(smaller.change.channels)))
        current = smaller


def _costs(steps: Sequence[_Step], whole: Branches, roughly: KlOf, aim: float) -> dict[Role, float]:
    """KL for each unit of loss, by group: of all but the last step of each activation, which is more than noise."""
    before, found = roughly(whole), dict[Role, float]()
    for group in dict.fromkeys(step.group for step in steps):
        of_value: dict[str, list[_Step]] = {}
        for step in steps:
            if step.group is group:
                of_value.setdefault(step.value, []).append(step)
        far = [some[: max(1, len(some) - 1)] for some in of_value.values()]
        loss = sum(step.loss for some in far for step in some)
        kl = roughly(_taken(whole, [some[-1] for some in far])) - before
        found[group] = max(kl, _LEAST * aim) / loss if loss else 0.0
    return found


def _by_worth(steps: Sequence[_Step], costs: Mapping[Role, float]) -> list[tuple[float, _Step]]:
    """Each step and the KL that it costs; what costs least for the bytes that it saves first."""
    worth: list[tuple[float, int]] = []
    last: dict[str, float] = {}
    for index, step in enumerate(steps):
        own = costs[step.group] * step.loss / step.saves
        last[step.value] = max(own, last.get(step.value, 0.0))  # the steps of an activation stay in their order
        worth.append((last[step.value], index))
    return [(costs[steps[index].group] * steps[index].loss, steps[index]) for _, index in sorted(worth)]


def _taken(whole: Branches, steps: Sequence[_Step]) -> Branches:
    return {**whole, **{step.value: step.to for step in steps}}
