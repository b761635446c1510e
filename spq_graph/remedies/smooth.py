"""Smoothing: which powers of two make the channels of an activation alike, at the cost of its weights'. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from spq_graph.documents.changes import MOST_EXPONENT, Scale
from spq_graph.documents.value_range import ValueRange
from spq_graph.terms.absorber import Absorber, gathered, spread

Scales = Mapping[str, Scale]
"""By activation value, its factors."""
UNSCALED: Scales = MappingProxyType({})
Floats = npt.NDArray[np.float32]


def smoothed(absorber: Absorber, seen: ValueRange, rows: Floats, alpha: float) -> Scale | None:
    """The factors that share out the work between an activation and the weights that read it; None where all are one.

    s_c = max|x_c|^alpha / max|W[c, :]|^(1 - alpha) (SmoothQuant, arXiv 2211.10438, equation 4), over a factor that all
    channels share, which changes no rounding, and as the nearest power of two. A channel that is zero throughout has
    one. Behind attention, query heads that share a head of the values have the factors of the largest among them.

    Args:
        absorber: what takes them.
        seen: what calibration saw of the activation, K channels.
        rows: largest |weight| by channel over all weights that read it, float32 [K].
        alpha: how much of the spread of the activation goes to the weights, from 0 to 1.
    """
    heads = absorber.heads
    largest, rows = gathered(seen.channels.astype(np.float64), heads), gathered(rows, heads)
    live = (largest > 0) & (rows > 0)
    if not live.any():
        return None
    wanted = alpha * np.log2(largest[live]) - (1 - alpha) * np.log2(rows[live].astype(np.float64))
    exponents = np.zeros(largest.size, dtype=np.int32)
    centred = np.rint(wanted - np.median(wanted))
    exponents[live] = np.clip(centred, -MOST_EXPONENT, MOST_EXPONENT)
    return _scale(absorber, seen, spread(exponents, heads)) if exponents.any() else None


def _scale(absorber: Absorber, seen: ValueRange, exponents: npt.NDArray[np.int32]) -> Scale:
    after = scaled(seen, exponents.tolist())
    return Scale(
        value=absorber.value,
        tensor=absorber.tensor,
        axis=absorber.axis,
        exponents=tuple(exponents.tolist()),
        heads=absorber.heads,
        low=after.low,
        high=after.high,
    )


def scaled(seen: ValueRange, exponents: Sequence[int]) -> ValueRange:
    """What calibration would have seen, to the bit, of channels divided by 2^e; of token maxima what it did see."""
    by = -np.asarray(exponents, dtype=np.int32)
    low, high = np.ldexp(seen.channel_low, by), np.ldexp(seen.channel_high, by)
    return replace(seen, low=float(low.min()), high=float(high.max()), channel_low=low, channel_high=high)
