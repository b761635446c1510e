"""What calibration saw of one activation value, in a form that merges associatively.

Everything is an integer count, a minimum or a maximum. Token maxima are kept as a histogram over the leading bits of
their float32 representation: 64 bins an octave, fixed for all time, relative error of a quantile at most 1/128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from spq_graph.documents.token_profile import FloatArray, IntArray, Peak, TokenProfile, bin_middle, bins_of
from spq_graph.terms.errors import DataError

_RATIO_UNIT = 1 << 20  # per-sequence ratios are summed in fixed point: float addition is not associative


@dataclass(slots=True)
class ValueRange:
    """What calibration saw of one activation value, [..., K].

    Attributes:
        low, high: smallest and largest element.
        peak: largest token maximum (absolute value over K) and where it was.
        histogram: count of token maxima by bin.
        ratio_sum: sum over sequences of max/median of token maxima, in units of 2**-20.
        sequences, tokens: how many went into it; no sequences where rows do not stand for tokens in their order.
        channel_low, channel_high: smallest and largest element by channel, float32 [K].
        profile: token maxima along the sequence; None where positions are not known (an expert's tokens), or were not
            recorded by an earlier version.
    """

    low: float
    high: float
    peak: Peak
    histogram: dict[int, int]
    ratio_sum: int
    sequences: int
    tokens: int
    channel_low: FloatArray
    channel_high: FloatArray
    profile: TokenProfile | None = None

    @classmethod
    def observe(
        cls,
        low: FloatArray,
        high: FloatArray,
        by_channel: tuple[FloatArray, FloatArray],
        ids: IntArray | None,
        mask: IntArray,
    ) -> Self:
        """Summarize one batch.

        Args:
            low: minimum over the channels by token, float32 [batch, length].
            high: maximum over the channels by token, float32 [batch, length].
            by_channel: smallest and largest element by channel, float32 [K] each.
            ids: token ids, int64 [batch, length]; None where the rows are no sequences: which of a batch's tokens an
                expert gets depends on what else is in the batch, so only what holds for each row alone is noted.
            mask: 1 where a token counts, 0 where it is padding, int64 [batch, length].
        """
        maxima = np.maximum(np.abs(low), np.abs(high)).astype(np.float32)
        valid = mask.astype(bool)
        kept = maxima[valid]
        if not kept.size:
            raise DataError(
                "a calibration batch holds nothing but padding",
                remedy="leave out sequences whose attention_mask is 0 throughout",
            )
        bins = bins_of(maxima)
        codes, counts = np.unique(bins[valid], return_counts=True)
        peak = Peak(float(kept.max()))
        if ids is not None:
            where = np.argwhere(valid & (maxima == kept.max()))
            row, peak.position = min(where.tolist(), key=lambda rc: (rc[1], int(ids[rc[0], rc[1]])))
            peak.token = int(ids[row, peak.position])
        return cls(
            low=float(low[valid].min()),
            high=float(high[valid].max()),
            peak=peak,
            histogram=dict(zip(codes.tolist(), counts.tolist(), strict=True)),
            ratio_sum=0 if ids is None else sum(_ratio_units(maxima, valid)),
            sequences=0 if ids is None else int(valid.any(axis=1).sum()),
            tokens=int(kept.size),
            channel_low=np.asarray(by_channel[0], dtype=np.float32),
            channel_high=np.asarray(by_channel[1], dtype=np.float32),
            profile=TokenProfile.observe(maxima, bins, ids, valid) if ids is not None else None,
        )

    def merge(self, other: ValueRange) -> None:
        """Add what another run saw of the same value."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.peak = max(self.peak, other.peak, key=Peak.rank)
        for index, count in other.histogram.items():
            self.histogram[index] = self.histogram.get(index, 0) + count
        self.ratio_sum += other.ratio_sum
        self.sequences += other.sequences
        self.tokens += other.tokens
        self.channel_low = np.minimum(self.channel_low, other.channel_low)
        self.channel_high = np.maximum(self.channel_high, other.channel_high)
        self.profile = self.profile.merged(other.profile) if self.profile and other.profile else None

    def quantile(self, share: float) -> float:
        """Quantile of the token maxima (lower of the two neighbours), within 1/128 of the true one."""
        rank = int(share * (self.tokens - 1))
        for index in sorted(self.histogram):
            rank -= self.histogram[index]
            if rank < 0:
                return bin_middle(index)
        return self.peak.value

    def facts(self) -> dict[str, Any]:
        """What is known in single numbers."""
        return {
            "min": self.low,
            "max": self.high,
            "token_max": self.peak.value,
            "token": self.peak.token,
            "position": self.peak.position,
            "median": self.median,
            "ratio": self.ratio,
            "sequence_ratio": self.sequence_ratio,
            "sequences": self.sequences,
            "tokens": self.tokens,
        }

    @property
    def channels(self) -> FloatArray:
        """Largest absolute value by channel, float32 [K]."""
        return np.maximum(np.abs(self.channel_low), np.abs(self.channel_high))

    @property
    def median(self) -> float:
        """Median of the token maxima."""
        return self.quantile(0.5)

    @property
    def ratio(self) -> float:
        """Pooled max/median of the token maxima: large where a few tokens spike."""
        return _ratio(self.peak.value, self.median)

    @property
    def sequence_ratio(self) -> float:
        """QFeM's statistic: mean over sequences of max/median (arXiv 2405.14428, section 4.1).

        The pooled ratio where there are no sequences.
        """
        return self.ratio_sum / _RATIO_UNIT / self.sequences if self.sequences else self.ratio

    def forget_sequences(self) -> None:
        """Keep only what holds for each row alone."""
        self.peak = Peak(self.peak.value)
        self.ratio_sum = self.sequences = 0
        self.profile = None


def _ratio(top: float, median: float) -> float:
    if top == 0.0:
        return 1.0
    return top / median if median > 0.0 else float(np.finfo(np.float32).max)


def _ratio_units(maxima: FloatArray, valid: npt.NDArray[np.bool_]) -> list[int]:
    """max/median of every sequence, in units of 2**-20; 0 for an empty one."""
    if valid.all():  # at once: this is what calibration spends its own time on
        pairs = zip(maxima.max(axis=1).tolist(), np.median(maxima, axis=1).tolist(), strict=True)
    else:
        rows = [row[keep] for row, keep in zip(maxima, valid, strict=True) if keep.any()]
        pairs = zip((float(row.max()) for row in rows), (float(np.median(row)) for row in rows), strict=True)
    return [round(_ratio(top, median) * _RATIO_UNIT) for top, median in pairs]
