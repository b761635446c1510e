"""What in front of an activation can take a factor for each of its channels, so that nothing is computed for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Channels: TypeAlias = npt.NDArray[Any]


class Place(StrEnum):
    """Where such an activation stands in a decoder layer."""

    NORM = "norm"  # behind a norm: the norm's weight takes the factors
    GLU = "glu"  # in front of a down projection: the output channels of the up projection do
    VALUE = "value"  # behind attention, which mixes positions: the output channels of the value projection do


Heads: TypeAlias = tuple[int, int]
"""Of the query, and of the values: each of these is shared by as many of those, one behind the other."""


def gathered(channels: Channels, heads: Heads | None) -> Channels:
    """The largest of every channel over the query heads that share it, [K] to as many as a value projection makes."""
    return channels if heads is None else _apart(channels, heads).max(axis=1).reshape(-1)


def spread(channels: Channels, heads: Heads | None) -> Channels:
    """Channels of a value projection as those of what attention gives, [N] to [K]."""
    if heads is None:
        return channels
    query, shared = heads
    return np.repeat(channels.reshape(shared, 1, -1), query // shared, axis=1).reshape(-1)


def shared_alike(channels: Channels, heads: Heads | None) -> bool:
    """Whether query heads that share a head of the values have the same in every channel, [K]."""
    return heads is None or bool((_apart(channels, heads) == _apart(channels, heads)[:, :1]).all())


def _apart(channels: Channels, heads: Heads) -> Channels:
    query, shared = heads
    return channels.reshape(shared, query // shared, -1)


@dataclass(frozen=True, slots=True)
class Absorber:
    """A tensor that makes an activation channel by channel, and the sites that read this activation, and nothing else.

    Attributes:
        value: name of the activation.
        place: where it stands.
        tensor: name of the tensor whose factors by channel are those of the activation.
        axis: of that tensor, along which the channels lie.
        sites: keys of the sites that read the activation.
        bias: name of the constant that is added to what the tensor makes, by channel; None where there is none.
        heads: of the query, and of the values, where attention gives the activation; None elsewhere.
    """

    value: str
    place: Place
    tensor: str
    axis: int
    sites: tuple[str, ...]
    bias: str | None = None
    heads: Heads | None = None


@dataclass(frozen=True, slots=True)
class Unabsorbed:
    """An activation whose factors nothing can take.

    Attributes:
        value: its name.
        sites: keys of the sites that read it.
        why: in words.
    """

    value: str
    sites: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Absorbers:
    """What of a graph takes factors, and what does not.

    Attributes:
        found: in the order of the activations.
        others: activations whose factors nothing can take.
        rows: largest |weight| by channel of an activation over all weights that read it, float32 [K]; every weight is
            read for it. None where numbers are so small or so large that factors could round them.
    """

    found: tuple[Absorber, ...]
    others: tuple[Unabsorbed, ...]
    rows: Callable[[Absorber], npt.NDArray[np.float32] | None]

    def without(self, place: Place, why: str) -> Absorbers:
        """The same where nothing at a place may take factors, and why not."""
        left = tuple(a for a in self.found if a.place is not place)
        gone = tuple(Unabsorbed(a.value, a.sites, why) for a in self.found if a.place is place)
        return replace(self, found=left, others=self.others + gone)
