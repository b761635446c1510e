"""Which powers of two smoothing divides channels by, and what is left of their range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spq_graph.documents.changes import MOST_EXPONENT
from spq_graph.documents.value_range import ValueRange
from spq_graph.remedies.smooth import scaled, smoothed
from spq_graph.terms.absorber import Absorber, Place
from tests.support.graphs import Array

AT = Absorber("x", Place.NORM, "norm.weight", 0, ("q_proj",))
SIZES = st.lists(st.floats(2.0**-7, 2.0**7, width=32), min_size=2, max_size=12)


def ranged(largest: Array) -> ValueRange:
    largest = np.asarray(largest, np.float32)
    token = np.full((1, 4), largest.max(), dtype=np.float32)
    ids, mask = np.zeros((1, 4), dtype=np.int64), np.ones((1, 4), dtype=np.int64)
    return ValueRange.observe(-token, token, (-largest, largest), ids, mask)


def test_all_of_the_spread_goes_to_the_weights_at_one_and_none_of_it_at_zero() -> None:
    sizes, rows = np.asarray([1, 4, 16, 4, 1]), np.asarray([1, 1, 1, 1, 8], np.float32)
    whole = smoothed(AT, ranged(sizes), rows, 1.0)
    assert whole is not None
    assert whole.exponents == (-2, 0, 2, 0, -2)
    assert (whole.low, whole.high) == (-4, 4)
    weights = smoothed(AT, ranged(sizes), rows, 0.0)
    assert weights is not None
    assert weights.exponents == (0, 0, 0, 0, -3)  # rows become alike


@settings(deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 9), alpha=st.floats(0, 1))
def test_they_are_the_nearest_powers_of_two(sizes: list[float], seed: int, alpha: float) -> None:
    """Equation 4 of SmoothQuant, over the factor that all share."""
    rows = np.random.default_rng(seed).uniform(0.1, 2, len(sizes)).astype(np.float32)
    wanted = np.asarray(sizes) ** alpha / rows.astype(np.float64) ** (1 - alpha)
    shares = np.log2(wanted) - np.median(np.log2(wanted))
    found = smoothed(AT, ranged(np.asarray(sizes)), rows, alpha)
    exponents = np.zeros(len(sizes)) if found is None else np.asarray(found.exponents)
    inside = np.abs(shares) < MOST_EXPONENT
    assert np.abs(exponents - shares)[inside].max(initial=0.0) <= 0.5 + 1e-6
    assert np.abs(exponents).max() <= MOST_EXPONENT


def test_nothing_is_proposed_without_cause() -> None:
    assert smoothed(AT, ranged(np.ones(6)), np.ones(6, np.float32), 0.5) is None
    assert smoothed(AT, ranged(np.zeros(6)), np.ones(6, np.float32), 0.5) is None


def test_a_channel_that_is_zero_or_that_nothing_weighs_stays_as_it_is() -> None:
    found = smoothed(AT, ranged(np.asarray([0, 1, 64, 1, 64])), np.asarray([1, 1, 1, 1, 0], np.float32), 1.0)
    assert found is not None
    assert found.exponents == (0, 0, 6, 0, 0)
    assert found.high == 64


def test_ranges_are_those_of_the_divided_channels() -> None:
    seen = ranged(np.asarray([1, 3, 100]))
    after = scaled(seen, (0, 1, 5))
    np.testing.assert_array_equal(after.channel_high, np.asarray([1, 1.5, 3.125], np.float32))
    assert (after.low, after.high) == (-3.125, 3.125)
    assert after.ratio == seen.ratio  # of what calibration saw
    assert seen.high == 100


def test_factors_are_no_further_apart_than_a_plan_takes() -> None:
    found = smoothed(AT, ranged(np.asarray([1e-9, 1, 1, 1e9])), np.ones(4, np.float32), 1.0)
    assert found is not None
    assert found.exponents == pytest.approx((-MOST_EXPONENT, 0, 0, MOST_EXPONENT))


def test_query_heads_that_share_values_have_the_factors_of_the_largest_among_them() -> None:
    """Four heads of the query of two channels each, two of which share a head of the values."""
    sizes, rows = np.asarray([1, 1, 16, 1, 1, 4, 1, 1]), np.asarray([1, 1, 1, 1, 1, 1, 8, 1], np.float32)
    at = Absorber("x", Place.VALUE, "v.weight", 1, ("o_proj",), heads=(4, 2))
    found = smoothed(at, ranged(sizes), rows, 1.0)
    assert found is not None
    assert found.heads == (4, 2)
    assert found.exponents == (3, -1, 3, -1, -1, 1, -1, 1)  # of 16, 1, 1 and 4, whose median is 2
    weights = smoothed(at, ranged(np.ones(8)), rows, 0.0)
    assert weights is not None
    assert weights.exponents == (0, 0, 0, 0, -3, 0, -3, 0)
