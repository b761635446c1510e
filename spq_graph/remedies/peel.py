"""Outlier branches: which channels of an activation to take out of its INT8 range. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spq_graph.documents.changes import Peel
from spq_graph.documents.value_range import ValueRange


@dataclass(frozen=True, slots=True)
class Peeled:
    """A branch, and what it brings.

    Attributes:
        change: the branch.
        narrower: width of the whole range over the width of what is left of it, at least 1; both include zero.
    """

    change: Peel
    narrower: float


def peeled(value: str, seen: ValueRange, count: int, *, symmetric: bool = False) -> Peeled | None:
    """The branch of so many channels that leaves the narrowest range; None where none leaves a narrower one.

    Of all choices of `count` channels the one without which the others' range, zero included, is narrowest: some have
    the largest maxima, the rest the smallest minima, so that trying every split of the count finds it.

    Args:
        value: name of the activation value.
        seen: what calibration saw of it, K channels.
        count: how many channels, at least 1; where there are no more than that, all but one.
        symmetric: the quantizer's range is the same on both sides of zero.
    """
    low, high = np.minimum(seen.channel_low, 0), np.maximum(seen.channel_high, 0)
    if symmetric:
        high = np.maximum(-low, high)
        low = np.zeros_like(high)
    count = min(count, high.size - 1)
    if count < 1:
        return None
    # Sorted once: as many again of the smallest minima stand in for those that are among the largest maxima.
    top, bottom = np.argsort(-high, kind="stable")[:count], np.argsort(low, kind="stable")[: 2 * count]
    best = min((_outermost(top, bottom, above) for above in range(count + 1)), key=lambda c: _width(low, high, c))
    whole, left = float(high.max()) - float(low.min()), _width(low, high, best)
    if not left < whole:
        return None
    inner = np.delete(np.arange(high.size), best)
    ends = float(seen.channel_low[inner].min()), float(seen.channel_high[inner].max())
    change = Peel(value=value, channels=tuple(sorted(best.tolist())), low=ends[0], high=ends[1])
    return Peeled(change, whole / left if left > 0 else float(np.finfo(np.float32).max))


def _outermost(top: np.ndarray, bottom: np.ndarray, above: int) -> np.ndarray:
    """`above` channels of the largest maxima, and of the others those of the smallest minima, int64 [count].

    Args:
        top: channels by their maxima, the largest first, [count].
        bottom: channels by their minima, the smallest first, [2 count], or all.
        above: how many of the former.
    """
    first = top[:above]
    return np.concatenate([first, bottom[~np.isin(bottom, first)][: top.size - above]])


def _width(low: np.ndarray, high: np.ndarray, left_out: np.ndarray) -> float:
    inner = np.ones(high.size, dtype=bool)
    inner[left_out] = False
    return float(high[inner].max()) - float(low[inner].min())
