"""The published definitions, on arrays whose answer is known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from spq_graph.decisions.outliers import Coordinate, coordinate_of, peak_of, share_of, sharpest_column, spikes
from spq_graph.documents.outliers import Column, Peak


def ones_with(value: float, shape: tuple[int, int] = (64, 256)) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Ones of either sign, and one value at token 3 in channel 5."""
    array = np.where(np.arange(np.prod(shape)).reshape(shape) % 2, 1.0, -1.0).astype(np.float32)
    array[3, 5] = value
    return array


def peak(array: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Peak:
    found = peak_of(array)
    assert found is not None
    return found


def test_the_peak_is_the_element_farthest_from_zero_with_its_sign() -> None:
    found = peak(ones_with(-500.0))
    assert (found.value, found.position, found.channel) == (-500.0, 3, 5)
    assert found.to_median == 500.0
    assert found.to_mean == pytest.approx(500 / ((64 * 256 - 1 + 500) / (64 * 256)))
    assert peak_of(ones_with(-500.0), tokens=False) is not None
    assert peak_of(np.zeros((0, 4), np.float32)) is None


@pytest.mark.parametrize(("value", "systematic"), [(900.0, False), (1050.0, False), (1100.0, True)])
def test_systematic_is_beyond_a_thousand_times_the_mean(value: float, systematic: bool) -> None:
    """The mean has the value itself in it: 1,050 in 16,384 ones is 987 times their mean."""
    assert peak(ones_with(value)).systematic is systematic


@pytest.mark.parametrize(("scale", "value", "massive"), [(1.0, 999, False), (1.0, 1000, True), (0.01, 99, False)])
def test_massive_is_large_and_beyond_a_thousand_times_the_median(scale: float, value: float, massive: bool) -> None:
    array = ones_with(0.0) * np.float32(scale)
    array[3, 5] = value
    assert peak(array).massive is massive


def test_nothing_is_a_ratio_to_zero() -> None:
    array = np.zeros((8, 8), np.float32)
    zero = peak(array)
    assert (zero.to_mean, zero.to_median, zero.systematic, zero.massive) == (None, None, False, False)
    array[1, 1] = 200.0
    found = peak(array)
    assert (found.to_mean, found.to_median, found.massive) == (64.0, None, True)


def test_a_spike_is_large_and_an_outlier() -> None:
    """Where ordinary values are large, as in small models, 50 alone is nothing."""
    assert spikes(peak(ones_with(2000.0)))
    assert not spikes(peak(ones_with(60.0)))
    assert not spikes(peak(ones_with(2000.0) / np.float32(100.0)))
    assert not spikes(None)


def test_a_spike_is_one_on_a_prompt_of_one_token_as_well() -> None:
    """There it is most of the mean, of which it can be no more than so many times as there are channels."""
    alone = ones_with(0.0, (4, 256))[:1]
    alone[0, 5] = -5000.0
    assert not peak(alone).systematic
    assert spikes(peak(alone))


def test_the_column_is_the_channel_of_the_largest_input_that_is_not_zeroed_for_this_row() -> None:
    inputs = np.zeros((4, 6), np.float32)
    inputs[0, 2], inputs[3, 4] = -9.0, 5.0
    assert coordinate_of(inputs, 1) == Coordinate(1, 2)
    assert coordinate_of(inputs, 1, [Coordinate(1, 2)]) == Coordinate(1, 4)
    assert coordinate_of(inputs, 1, [Coordinate(0, 2)]) == Coordinate(1, 2), "another row's weight is still there"


def test_the_share_is_that_of_the_products_sum() -> None:
    inputs, weight = np.array([[1.0, 2.0], [30.0, -4.0]], np.float32), np.array([[0.5, 0.0], [2.0, 1.0]], np.float32)
    output = peak(inputs @ weight)
    assert (output.position, output.channel, output.value) == (1, 0, 7.0)
    shares = [share_of(inputs, Coordinate(0, column), float(weight[column, 0]), output) for column in range(2)]
    assert shares == pytest.approx([15 / 7, -8 / 7])
    assert sum(shares) == pytest.approx(1.0)


def test_the_sharpest_column_is_found_over_all_blocks() -> None:
    weight = np.abs(np.random.default_rng(0).normal(1, 0.1, (300, 64))).astype(np.float32)
    weight[271, 9] = 50.0
    blocks = [(slice(at, min(at + 128, 300)), weight[at : at + 128]) for at in (0, 128, 256)]
    found = sharpest_column(blocks)
    assert found is not None
    assert found == Column(271, pytest.approx(50 / weight[271].mean(), rel=1e-5))
    assert sharpest_column([]) is None
