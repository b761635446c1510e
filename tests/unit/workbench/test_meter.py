"""What decisions are measured on: as many tokens as were asked for, padding not counted, or the reason why not."""

from __future__ import annotations

import numpy as np
import pytest

from spq_graph.documents.recipe import Recipe
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.workbench.meter import spread, why_fewer


def rows(lengths: list[int]) -> Sequences:
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    return Sequences(mask * 7, mask)


@pytest.mark.parametrize(
    ("lengths", "asked"),
    [
        ([100] * 10, 250),
        ([16] * 512, 4096),
        ([2048] + [20] * 400, 4096),  # short texts beside a long one: by width, two rows would have been thought enough
        (list(range(1, 200)), 3000),
    ],
)
def test_as_much_as_was_asked_for_less_a_row(lengths: list[int], asked: int) -> None:
    few = spread(rows(lengths), asked)
    assert asked - max(lengths) < few.tokens <= asked
    assert why_fewer(rows(lengths), few, Recipe(sensitivity_tokens=asked), fits=None) is None


def test_rows_are_spread_over_all_of_them() -> None:
    numbered = Sequences(np.arange(64)[:, None].repeat(8, 1), np.ones((64, 8), np.int64))
    assert spread(numbered, 64).ids[:, 0].tolist() == [0, 8, 16, 24, 32, 40, 48, 56]


def test_a_row_that_is_longer_than_what_was_asked_for_is_taken() -> None:
    assert spread(rows([500, 500]), 100).tokens == 500


def test_short_data_is_told() -> None:
    few = spread(rows([100] * 3), 4096)
    assert few.tokens == 300
    assert why_fewer(rows([100] * 3), few, Recipe(), fits=None) == "the calibration data has no more"
    assert "TMPDIR" in (why_fewer(rows([100] * 3), few, Recipe(), fits=200) or "")
