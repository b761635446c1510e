"""Which value is an outlier, and which weight makes it: three published definitions, over arrays alone.

Super weights: Yu et al., "The Super Weight in Large Language Models", arXiv 2411.07191. Systematic outliers: An et al.,
"Systematic Outliers in Large Language Models", arXiv 2502.06415. Massive activations: Sun et al., arXiv 2402.17762, as
arXiv 2503.22329 takes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from spq_graph.documents.outliers import Column, Peak

Floats: TypeAlias = npt.NDArray[np.float32]

# Of what a down projection gives, |value| beyond which arXiv 2411.07191 looks for a super weight.
SPIKE = 50.0
# |value| > tau * mean |.|, arXiv 2502.06415.
TAU = 1000.0
# |h| > 100 and |h| >= 1000 * median |h|, arXiv 2503.22329.
MASSIVE, MASSIVE_TO_MEDIAN = 100.0, 1000.0
# A weight whose own product is less of a spike than this does not make it: zeroing it would prove nothing.
LEAST_SHARE = 0.1
# Each zeroed weight is one more run of the model.
MOST_ZEROED = 16
_LEAST_MEAN = 1e-8  # as the code of arXiv 2502.06415 has it


class Coordinate(NamedTuple):
    """A weight of a site: the channel of what it gives (row), and of what it takes (column)."""

    row: int
    column: int


def peak_of(values: Floats, *, tokens: bool = True) -> Peak | None:
    """The element farthest from zero, and what it is by the definitions; None of nothing.

    Args:
        values: an activation, float32 [tokens, channels], finite.
        tokens: whether the rows are the prompt's tokens.
    """
    if not values.size:
        return None
    sizes = np.abs(values)
    position, channel = (int(index) for index in np.unravel_index(int(sizes.argmax()), sizes.shape))
    largest, mean, median = (float(part) for part in (sizes.max(), sizes.mean(dtype=np.float64), np.median(sizes)))
    return Peak(
        value=float(values[position, channel]),
        position=position if tokens else None,
        channel=channel,
        to_mean=largest / mean if mean else None,
        to_median=largest / median if median else None,
        systematic=largest > TAU * mean,
        massive=largest > MASSIVE and largest >= MASSIVE_TO_MEDIAN * median,
    )


def spikes(output: Peak | None) -> bool:
    """Whether what a down projection gives holds a spike that a weight is to be sought for.

    Beyond the size that is published it must stand out among what the site gives, as a massive activation does: where
    ordinary values are large, as in small models, size alone finds one in every other layer. It is held against the
    median, which a spike does not move; on a prompt of a few tokens it makes most of the mean.
    """
    if output is None or abs(output.value) <= SPIKE:
        return False
    return output.to_median is None or output.to_median >= MASSIVE_TO_MEDIAN


def coordinate_of(inputs: Floats, row: int, zeroed: Collection[Coordinate] = ()) -> Coordinate:
    """The weight that a spike is put down to: its row, and as column the channel of the largest |input|.

    Args:
        inputs: what the site takes, float32 [tokens, K].
        row: channel of the spike in what it gives.
        zeroed: weights of this site that are zero already, and make nothing.
    """
    sizes = np.abs(inputs).max(axis=0)
    sizes[[one.column for one in zeroed if one.row == row]] = -1.0
    return Coordinate(row, int(sizes.argmax()))


def share_of(inputs: Floats, coordinate: Coordinate, weight: float, spike: Peak) -> float:
    """Which part of a spike the product of one weight is: x_c * W[r, c] / y_r on the spike's token.

    Where rows are not the prompt's tokens it is that of the row on which the product is farthest from zero.
    """
    of_column = inputs[:, coordinate.column].astype(np.float64)
    at = spike.position if spike.position is not None else int(np.abs(of_column).argmax())
    return float(of_column[at] * weight / spike.value)


def sharpest_column(blocks: Iterable[tuple[slice, Floats]]) -> Column | None:
    """The column of a down projection's weight, [out, in], whose max |w| / mean |w| is largest; None of nothing.

    No threshold is published for it: it is a hint that needs no data, and activations tell whether it is right.

    Args:
        blocks: the weight as its product sees it, float32 [K, N], by some rows of K at a time.
    """
    best: Column | None = None
    for rows, block in blocks:
        sizes = np.abs(block)
        ratios = sizes.max(axis=1) / (sizes.mean(axis=1) + _LEAST_MEAN)
        at = int(ratios.argmax())
        if best is None or ratios[at] > best.ratio:
            best = Column(rows.start + at, float(ratios[at]))
    return best
