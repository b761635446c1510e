"""FP8 from its definition, in plain Python: an oracle that shares nothing with the code under test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Definition:
    """A sign bit, then the exponent, then the mantissa; E4M3FN has no infinities and one NaN for each sign."""

    exponent: int
    mantissa: int
    bias: int
    finite_only: bool

    def value(self, code: int) -> float:
        sign = -1.0 if code >> 7 else 1.0
        exponent, mantissa = (code & 0x7F) >> self.mantissa, code & ((1 << self.mantissa) - 1)
        if self.finite_only and code & 0x7F == 0x7F:
            return math.nan
        if not self.finite_only and exponent == (1 << self.exponent) - 1:
            return math.nan if mantissa else sign * math.inf
        if exponent == 0:
            return sign * math.ldexp(mantissa, 1 - self.bias - self.mantissa)
        return sign * math.ldexp((1 << self.mantissa) + mantissa, exponent - self.bias - self.mantissa)

    @cached_property
    def positive(self) -> Array:
        """The finite numbers from zero upwards; each one's place is its code."""
        values = [self.value(code) for code in range(128)]
        return np.array([value for value in values if math.isfinite(value)])

    def rounded(self, values: Array) -> Array:
        """The nearest of the finite numbers, and of two that are as near the one with an even code; in float64."""
        magnitude = np.abs(np.asarray(values, dtype=np.float64))
        above = np.searchsorted(self.positive, magnitude).clip(1, len(self.positive) - 1)
        low, high = self.positive[above - 1], self.positive[above]
        up = (magnitude - low > high - magnitude) | ((magnitude - low == high - magnitude) & (above % 2 == 0))
        nearest = np.where(up, high, low)
        known = np.where(np.isfinite(magnitude), nearest, magnitude)
        return np.asarray(np.copysign(known, values))

    @cached_property
    def telling(self) -> Array:
        """Every number, every middle between two, and the float32 neighbours of both; and what lies beyond."""
        points = np.concatenate([self.positive, (self.positive[1:] + self.positive[:-1]) / 2]).astype(np.float32)
        largest = np.float32(self.positive[-1])
        beyond = np.float32([largest * 1.03, largest * 1.07, largest * 2, 1e30, np.finfo(np.float32).max])
        points = np.concatenate([points, beyond])
        with np.errstate(over="ignore"):  # behind the largest of all comes infinity, which is left out
            near = [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
        both = np.concatenate([*near, *(-values for values in near)])
        return np.unique(both[np.isfinite(both)])


E4M3 = Definition(exponent=4, mantissa=3, bias=7, finite_only=True)
E5M2 = Definition(exponent=5, mantissa=2, bias=15, finite_only=False)
BY_NAME = {"fp8_e4m3": E4M3, "fp8_e5m2": E5M2}
