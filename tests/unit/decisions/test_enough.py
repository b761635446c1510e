"""How much data is enough."""

from __future__ import annotations

import pytest

from spq_graph.decisions.enough import tokens_to_evaluate, too_few


@pytest.mark.parametrize(
    ("weights", "tokens"),
    [
        (0, 65_536),
        (3_000_000, 65_536),
        (16_000_000, 65_536),
        (134_500_000, 8_192),
        (494_000_000, 4_096),
        (8 << 30, 4_096),
    ],
)
def test_what_a_ladder_is_measured_on(weights: int, tokens: int) -> None:
    assert tokens_to_evaluate(weights) == tokens


def test_a_row_costs_about_the_same_between_the_bounds() -> None:
    for weights in range(20_000_000, 190_000_000, 10_000_000):
        assert 0.7 < weights * tokens_to_evaluate(weights) / 2**40 < 1.45


def test_calibration_data_of_less_than_a_window_is_too_little() -> None:
    assert too_few(4_096, 2_048) is None
    assert "one full sequence" in str(too_few(1_000, 2_048))
    assert too_few(100) is not None
