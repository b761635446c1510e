"""What in front of an activation can take a factor for each of its channels, so that nothing is computed for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt


class Place(StrEnum):
    """Where such an activation stands in a decoder layer."""

    NORM = "norm"  # behind a norm: the norm's weight takes the factors
    GLU = "glu"  # in front of a down projection: the output channels of the up projection do


@dataclass(frozen=True, slots=True)
class Absorber:
    """A tensor that makes an activation channel by channel, and the sites that read this activation, and nothing else.

    Attributes:
        value: name of the activation.
        place: where it stands.
        tensor: name of the tensor whose factors by channel are those of the activation.
        axis: of that tensor, along which the channels lie.
        sites: keys of the sites that read the activation.
    """

    value: str
    place: Place
    tensor: str
    axis: int
    sites: tuple[str, ...]


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
