"""A piece of a model that runs alone, so that only its weights need be in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

# The element type and the shape, in any one batch, of a value that one segment hands to the next.
Handed = tuple[str, tuple[int, ...]]


class Spec(NamedTuple):
    """An input or output of a graph, as a session describes its own.

    Attributes:
        name: of the value.
        type: such as "tensor(int64)".
        shape: a number, a name, or None for each dimension.
    """

    name: str
    type: str
    shape: list[int | str | None]


class Weight(NamedTuple):
    """A weight as the runtime takes it: the array, and its element type in ONNX where numpy has no such type."""

    array: npt.NDArray[np.generic]
    element_type: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive nodes of a graph.

    Attributes:
        reads: values that earlier segments hand to it; the inputs of the graph are not among them.
        gives: values that it hands to later segments, and outputs of the graph.
        size: bytes that its weights take in a session on the CPU, where half precision is widened.
        proto: serializes it, given element type (as "tensor(float)") and a shape of what it reads.
        weights: makes the weights that are not in a file, by name.
        own: bytes of `size` that a session holds for itself even where it packs nothing beforehand: what it cannot map
            from a file as it is.
        codes: whether some weights are numbers of 8 bits or fewer, which products want packed beforehand.
        wide: whether what a session maps from a file is more than it is to hold, as packing it beforehand would.
        tokenwise: whether it computes every token from what it is handed of that token alone.
    """

    reads: tuple[str, ...]
    gives: tuple[str, ...]
    size: int
    proto: Callable[[Mapping[str, Handed]], bytes]
    weights: Mapping[str, Callable[[], Weight]]
    own: int = 0
    codes: bool = True
    wide: bool = False
    tokenwise: bool = False


@dataclass(frozen=True, slots=True)
class Segmented:
    """A graph as segments.

    Attributes:
        where: its file, for errors, beside which the weights that are in files lie.
        inputs, outputs: of the whole graph.
        segments: in the order in which they run.
    """

    where: Path
    inputs: list[Spec]
    outputs: list[Spec]
    segments: list[Segment]


# Names of values that are handed over between two stages.
Cut = tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """The nodes between two cuts that several graphs have in common.

    Attributes:
        before: names of the values at the cut in front of it, which it may read; none for the first.
        behind: names at the cut behind it; for the last the output.
        segment: what runs it.
        content: nodes and tensors, such that two stages with equal content compute the same, while both exist.
    """

    before: Cut
    behind: Cut
    segment: Segment
    content: object

    def same_as(self, other: Stage | None) -> bool:
        """Whether another computes the same values from the same values."""
        mine = (self.before, self.behind, self.content)
        return other is not None and mine == (other.before, other.behind, other.content)


@dataclass(frozen=True, slots=True, eq=False)
class Staged:
    """A graph in stages.

    Attributes:
        whole: all of it as a runner takes it, a segment a stage.
        stages: in the order in which they run.
    """

    whole: Segmented
    stages: tuple[Stage, ...]

    def with_stages(self, stages: tuple[Stage, ...]) -> Staged:
        """The same, in stages that compute the same values."""
        return Staged(replace(self.whole, segments=[stage.segment for stage in stages]), stages)

    def segmented(self, first: int = 0) -> Segmented:
        """The stages from one on, as a runner takes them."""
        return replace(self.whole, segments=self.whole.segments[first:])


def type_of(array: npt.NDArray[Any]) -> str:
    """ONNX Runtime's name of an array's type."""
    return _TYPE_NAMES[array.dtype.name]


_TYPE_NAMES = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "float16": "tensor(float16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "int16": "tensor(int16)",
    "int8": "tensor(int8)",
    "uint8": "tensor(uint8)",
    "uint16": "tensor(uint16)",
    "uint32": "tensor(uint32)",
    "uint64": "tensor(uint64)",
    "bool": "tensor(bool)",
}
