"""Batches on their way through the segments of a graph, and the parts of one that the last segment may run in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.sessions.feeds import Array
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.segment import Segment


@dataclass(slots=True)
class Passing:
    """A batch on its way: what the graph's inputs take, the ids, and values of segments behind it."""

    feed: dict[str, Array]
    ids: Ids
    values: dict[str, Array] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the ids."""
        return self.ids.shape


@dataclass(frozen=True, slots=True)
class Part:
    """Some columns of a batch, as the last segment takes them.

    Attributes:
        columns: which; None for all, with whatever else belongs to the batch.
        ends: whether no part of the batch comes behind it.
    """

    batch: Passing
    columns: slice | None = None
    ends: bool = True

    def taken(self) -> Passing:
        """What the segment runs on; of a whole batch nothing is held any longer."""
        batch = self.batch
        if self.columns is None:
            whole = Passing(batch.feed, batch.ids, batch.values)
            batch.values = {}
            return whole
        values = {name: np.ascontiguousarray(array[:, self.columns]) for name, array in batch.values.items()}
        return Passing({}, batch.ids[:, self.columns], values)


def in_parts(batch: Passing, segment: Segment, columns: int | None, outputs: Sequence[str]) -> list[Part]:
    """Parts of so many columns at most; one, where the segment does not compute all outputs token by token."""
    length = batch.shape[1]
    by_token = segment.tokenwise and set(outputs) <= set(segment.gives)
    if columns is None or columns >= length or not by_token:
        return [Part(batch)]
    if any(batch.values[name].shape[:2] != batch.shape for name in segment.reads):
        return [Part(batch)]
    batch.values = {name: batch.values[name] for name in segment.reads}
    return [
        Part(batch, slice(start, start + columns), start + columns >= length) for start in range(0, length, columns)
    ]


def in_columns(logits: npt.NDArray[np.float32], columns: int | None) -> Iterator[npt.NDArray[np.float32]]:
    """Views of so many columns at a time, [batch, columns, vocabulary]; None for all at once."""
    step = columns or max(1, logits.shape[1])
    return (logits[:, start : start + step] for start in range(0, logits.shape[1], step))


def tokens_of(batches: Sequence[Passing]) -> int:
    """How many tokens batches hold, padding included."""
    return sum(math.prod(batch.shape) for batch in batches)


def kept_of(batches: Sequence[Passing]) -> int:
    """Bytes that batches hold of segments behind them; one at least."""
    return max(1, sum(array.nbytes for batch in batches for array in batch.values.values()))
