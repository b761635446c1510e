"""Outlier branches on the way to a plan: where one narrows the range, and what the plan says of those it has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from spq_graph.decisions.choices import Choice, six
from spq_graph.documents.changes import Peel
from spq_graph.documents.plan import Reason
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.treatment import Cause, Treatment
from spq_graph.remedies.peel import Peeled, peeled
from spq_graph.terms.precision import Precision

Branches = Mapping[str, Peeled]
"""By activation value, its branch."""
NONE: Branches = MappingProxyType({})
# Below this a branch would win less than a third of the rounding's power, and cost the same as one that wins it all.
WORTH = 1.25
# Of so many channels a branch has at most one: rows in float32 are then no more than half of the weight in INT8.
LEAST_SHARE = 8
HEAD_CHANNELS = 16  # of a head by token; a hundredth of what its table takes
WHY = {
    Cause.BUDGET: "keeping sites alone does not meet the KL budget",
    Cause.OVERRIDE: "by hand: remedies.peel",
    Cause.NOT_NEEDED: "no site that reads it has one scale for all channels",
}


def everywhere(choices: Iterable[Choice], recipe: Recipe, count: int) -> Branches:
    """A branch of so many channels at every activation of an integer site whose range that narrows.

    Args:
        choices: every site.
        recipe: says whether ranges are symmetric.
        count: how many channels; where that is more than an eighth of all, an eighth.
    """
    seen = {c.site.input: c.reads for c in choices if c.precision.takes_branch and c.reads is not None}
    symmetric = recipe.activations == "symmetric"
    counts = {value: min(count, r.channel_high.size // LEAST_SHARE) for value, r in seen.items()}
    found = {value: peeled(value, r, counts[value], symmetric=symmetric) for value, r in seen.items() if counts[value]}
    return {value: branch for value, branch in found.items() if branch is not None and branch.narrower >= WORTH}


def of_heads(
    choices: Mapping[str, Choice], held: Collection[str], recipe: Recipe, precisions: Mapping[str, Precision]
) -> Branches:
    """The branches of heads that are to be by token, where nobody said so: they are no part of the search for others.

    Args:
        choices: every site, by key.
        held: keys of heads and embeddings.
        recipe: says how many channels branches have, and whether there are any.
        precisions: of what is measured, by key.
    """
    by_token = [choices[key] for key in held if (to := precisions.get(key)) is not None and to.row.by_token]
    heads = [c for c in by_token if c.site.left_alone(recipe.quantize_lm_head) and c.reason is not Reason.OVERRIDE]
    if not heads or recipe.remedies.peel.use == "never":
        return NONE
    count = min(HEAD_CHANNELS, max(recipe.remedies.peel.channels))
    return everywhere((replace(c, precision=precisions[c.site.key]) for c in heads), recipe, count)


def changes(branches: Branches) -> dict[str, Peel]:
    """The edits alone."""
    return {value: branch.change for value, branch in branches.items()}


def reach(choice: Choice, branches: Branches) -> float:
    """Width of what its quantizer covers, branches in force, over the median of its token maxima."""
    seen = choice.reads
    if seen is None or seen.median <= 0:
        return 0.0
    branch = branches.get(choice.site.input)
    low, high = (branch.change.low, branch.change.high) if branch is not None else (seen.low, seen.high)
    return (max(high, 0.0) - min(low, 0.0)) / seen.median


def treatments(choices: Iterable[Choice], branches: Branches, cause: Cause) -> list[Treatment]:
    """What the plan says of its branches, in the order of their sites; those that no integer site reads are refused."""
    readers: dict[str, list[Choice]] = {}
    for choice in choices:
        readers.setdefault(choice.site.input, []).append(choice)
    return [
        _treatment(branches[value], [c.site.key for c in reading if c.precision.takes_branch], reading, cause)
        for value, reading in readers.items()
        if value in branches
    ]


def _treatment(branch: Peeled, integer: Collection[str], reading: Collection[Choice], cause: Cause) -> Treatment:
    cause = cause if integer else Cause.NOT_NEEDED
    return Treatment(
        remedy="peel",
        sites=tuple(integer or (c.site.key for c in reading)),
        applied=bool(integer),
        reason=cause,
        changes=(branch.change,),
        narrower=six(branch.narrower),
        note=WHY[cause],
    )
