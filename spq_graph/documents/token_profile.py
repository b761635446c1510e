"""Where in a sequence an activation is large, and on which tokens, in a form that merges associatively.

Positions fall into fixed buckets, each of the first eight alone and then four an octave, so that sequences of any
length make a few dozen numbers. What a bucket holds is a maximum with its place, and integer sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

_SHIFT = 17  # float32 keeps 23 bits of mantissa; the upper 6 of them, with the exponent, number a bin
LEADERS = 8
_ALONE = 8  # positions with a bucket each
_PER_OCTAVE = 4
_NEVER = np.iinfo(np.int64).max

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


def bins_of(token_maxima: FloatArray) -> IntArray:
    """Histogram bin of each non-negative float32."""
    return np.ascontiguousarray(token_maxima, dtype=np.float32).view(np.uint32).astype(np.int64) >> _SHIFT


def bin_middle(index: int) -> float:
    """The value in the middle of a bin."""
    edges = np.array([index << _SHIFT, (index + 1) << _SHIFT], dtype=np.uint32).view(np.float32)
    return 0.0 if index == 0 else float(edges.astype(np.float64).mean())


@dataclass(slots=True)
class Peak:
    """The largest token maximum, and the token and position where it stood."""

    value: float = 0.0
    token: int = -1
    position: int = -1

    def rank(self) -> tuple[float, int, int]:
        """A total order, so that merging does not depend on the order of shards."""
        return (self.value, -self.position, -self.token)


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one bucket saw: positions first to last, its largest token maximum, and the typical one.

    `typical` is the geometric mean of the token maxima, within 6 %.
    """

    first: int
    last: int
    peak: Peak
    typical: float
    tokens: int


@dataclass(frozen=True, slots=True)
class TokenProfile:
    """Token maxima along the sequence; never changed, merging makes a new one.

    Attributes:
        largest: largest token maximum by bucket, float32 [B].
        places: its position and token, the tokens seen, and the sum of their bins, int64 [B, 4].
        leaders: the tokens with the largest maxima, at most eight, each once, the largest first.
    """

    largest: FloatArray
    places: IntArray
    leaders: tuple[Peak, ...]

    @classmethod
    def observe(cls, maxima: FloatArray, bins: IntArray, ids: IntArray, valid: npt.NDArray[np.bool_]) -> Self:
        """Summarize one batch; all arrays are [batch, length], and a token's column is its position."""
        shown = maxima if valid.all() else np.where(valid, maxima, np.float32(-1.0))
        column = shown.max(axis=0)
        length = len(column)
        token = np.where(shown == column, ids, _NEVER).min(axis=0)
        starts = bucket_starts(length)
        largest = np.maximum.reduceat(column, starts)
        widths = np.diff(np.append(starts, length))
        # Of equal maxima the earliest counts, and there the smallest token: the order of Peak.rank.
        at = np.where(column == np.repeat(largest, widths), np.arange(length), _NEVER)
        position = np.minimum.reduceat(at, starts)
        counts = np.add.reduceat(valid.sum(axis=0, dtype=np.int64), starts)
        sums = np.add.reduceat(np.where(valid, bins, 0).sum(axis=0, dtype=np.int64), starts)
        places = np.stack([position, token[position], counts, sums], axis=1)
        used = int(np.flatnonzero(counts)[-1]) + 1  # padding on the right must not show
        return cls(*_without_empty(largest[:used], places[:used]), _leaders_of(maxima, ids, valid))

    def merged(self, other: TokenProfile) -> TokenProfile:
        """Both together."""
        size = max(len(self.largest), len(other.largest))
        (a, here), (b, there) = (_padded(p, size) for p in (self, other))
        values = np.stack([a, b])
        # lexsort's last key decides first: the largest value, then the earliest position, then the smallest token.
        order = np.lexsort(np.stack([[here[:, 1], there[:, 1]], [here[:, 0], there[:, 0]], -values]), axis=0)
        second = order[0] == 1
        places = np.where(second[:, None], there, here)
        places[:, 2:] = here[:, 2:] + there[:, 2:]
        return TokenProfile(np.where(second, b, a), places, _distinct([*self.leaders, *other.leaders]))

    def stretches(self) -> list[Stretch]:
        """What every bucket saw, from the first position to the last; empty ones are left out."""
        starts = bucket_starts(_end_of(len(self.largest)))
        ends = np.append(starts[1:], _end_of(len(self.largest)))
        return [
            Stretch(first, end - 1, Peak(value, token, position), _typical(bins, count), count)
            for first, end, value, (position, token, count, bins) in zip(
                starts.tolist(), ends.tolist(), self.largest.tolist(), self.places.tolist(), strict=True
            )
            if count
        ]

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """What `from_arrays` reads."""
        return {
            "profile": self.places,
            "profile_max": self.largest,
            "leaders": np.array([[p.token, p.position] for p in self.leaders], dtype=np.int64).reshape(-1, 2),
            "leaders_max": np.array([p.value for p in self.leaders], dtype=np.float32),
        }

    @classmethod
    def from_arrays(cls, places: IntArray, largest: FloatArray, leaders: IntArray, leaders_max: FloatArray) -> Self:
        """What `arrays` wrote."""
        peaks = zip(leaders_max.tolist(), leaders.tolist(), strict=True)
        return cls(largest, places, tuple(Peak(value, token, position) for value, (token, position) in peaks))


def bucket_starts(length: int) -> IntArray:
    """First positions of the buckets below `length`, int64 [B]."""
    starts = list(range(min(length, _ALONE)))
    octave = _ALONE
    while octave < length:
        starts += range(octave, min(2 * octave, length), octave // _PER_OCTAVE)
        octave *= 2
    return np.array(starts, dtype=np.int64)


def _end_of(buckets: int) -> int:
    """One past the last position of so many buckets."""
    if buckets <= _ALONE:
        return buckets
    octave, part = divmod(buckets - _ALONE, _PER_OCTAVE)
    width = _ALONE << octave
    return width + part * width // _PER_OCTAVE


def _typical(bins: int, count: int) -> float:
    """The value whose bin is the mean one; bins are all but logarithms, so their mean is that of the logarithms."""
    middle = int((bins / count + 0.5) * (1 << _SHIFT)) if bins else 0
    return float(np.array([middle], dtype=np.uint32).view(np.float32)[0])


def _without_empty(largest: FloatArray, places: IntArray) -> tuple[FloatArray, IntArray]:
    """Buckets that saw nothing hold nothing but neutral numbers, whatever padding was there."""
    empty = places[:, 2] == 0
    return np.where(empty, np.float32(-1.0), largest), np.where(empty[:, None], [[_NEVER, _NEVER, 0, 0]], places)


def _padded(profile: TokenProfile, size: int) -> tuple[FloatArray, IntArray]:
    more = size - len(profile.largest)
    nothing = np.tile(np.array([[_NEVER, _NEVER, 0, 0]], dtype=np.int64), (more, 1))
    return np.append(profile.largest, np.full(more, -1.0, np.float32)), np.concatenate([profile.places, nothing])


def _leaders_of(maxima: FloatArray, ids: IntArray, valid: npt.NDArray[np.bool_]) -> tuple[Peak, ...]:
    """The tokens with the largest maxima. Few of a batch are looked at: every one costs time on every site."""
    kept = maxima[valid]
    looked = 32
    while True:
        floor = np.partition(kept, -looked)[-looked] if looked < kept.size else np.float32(0.0)
        rows, positions = np.nonzero(valid & (maxima >= floor))
        found = _distinct(
            map(Peak, maxima[rows, positions].tolist(), ids[rows, positions].tolist(), positions.tolist())
        )
        if len(found) == LEADERS or looked >= kept.size:
            return found
        looked *= 4


def _distinct(peaks: Iterable[Peak]) -> tuple[Peak, ...]:
    """The highest peaks, each token once. Those of a whole are among those of its parts, so merging is exact."""
    best: dict[int, Peak] = {}
    for peak in sorted(peaks, key=Peak.rank, reverse=True):
        best.setdefault(peak.token, peak)
        if len(best) == LEADERS:
            break
    return tuple(best.values())
