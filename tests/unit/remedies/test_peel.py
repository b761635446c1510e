"""Which channels an outlier branch takes: those without which the range is the narrowest."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spq_graph.documents.value_range import ValueRange
from spq_graph.remedies.peel import peeled
from tests.support.graphs import Array

EXTREMES = st.lists(st.tuples(st.floats(-8, 8, width=32), st.floats(-8, 8, width=32)), min_size=2, max_size=8)


def ranged(low: Array, high: Array) -> ValueRange:
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    token = np.ones((1, 4), dtype=np.float32)
    ids, mask = np.zeros((1, 4), dtype=np.int64), np.ones((1, 4), dtype=np.int64)
    return ValueRange.observe(token * low.min(), token * high.max(), (low, high), ids, mask)


def width(low: Array, high: Array, *, symmetric: bool) -> float:
    """Of the range that a quantizer covers: with zero, and as far below as above where it is symmetric."""
    bottom, top = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
    return 2 * max(-bottom, top) if symmetric else top - bottom


@settings(deadline=None)
@given(extremes=EXTREMES, count=st.integers(1, 4), symmetric=st.booleans())
def test_no_other_choice_leaves_a_narrower_range(
    extremes: list[tuple[float, float]], count: int, symmetric: bool
) -> None:
    pairs = np.sort(np.asarray(extremes, dtype=np.float32), axis=1)
    low, high = pairs[:, 0], pairs[:, 1]
    count = min(count, len(pairs) - 1)
    left_out = [list(c) for c in combinations(range(len(pairs)), count)]
    best = min(width(np.delete(low, c), np.delete(high, c), symmetric=symmetric) for c in left_out)
    whole = width(low, high, symmetric=symmetric)
    found = peeled("x", ranged(low, high), count, symmetric=symmetric)
    if found is None:
        assert best >= whole
        return
    change = found.change
    assert len(change.channels) == count
    inner_low, inner_high = np.delete(low, change.channels), np.delete(high, change.channels)
    assert (change.low, change.high) == (inner_low.min(), inner_high.max())
    assert width(inner_low, inner_high, symmetric=symmetric) == best
    assert best == 0 or found.narrower == pytest.approx(whole / best, rel=1e-6)


def test_a_wide_channel_on_either_side() -> None:
    low, high = np.asarray([-1, -50, -1, -1, -2]), np.asarray([1, 1, 90, 1, 2])
    both = peeled("x", ranged(low, high), 2)
    assert both is not None
    assert both.change.channels == (1, 2)
    assert (both.change.low, both.change.high) == (-2, 2)
    assert both.narrower == 35.0
    one = peeled("x", ranged(low, high), 1)
    assert one is not None
    assert one.change.channels == (2,)


def test_nothing_is_proposed_without_cause() -> None:
    flat = np.ones(6)
    assert peeled("x", ranged(-flat, flat), 3) is None
    assert peeled("x", ranged(np.asarray([-9.0]), np.asarray([9.0])), 1) is None  # the only channel
    assert peeled("x", ranged(np.zeros(4), np.zeros(4)), 1) is None


def test_more_channels_than_there_are_leave_one() -> None:
    found = peeled("x", ranged(np.asarray([-1, -2, -3]), np.asarray([1, 2, 3])), 64)
    assert found is not None
    assert found.change.channels == (1, 2)
