"""Uniform quantizers: scales, zero points and codes, in numpy and without a graph."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from spq_graph.terms.errors import ActivationError, GraphError

SMALLEST = float(np.finfo(np.float32).tiny)  # a subnormal scale would overflow its reciprocal
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class ActivationQuantizer:
    """A static per-tensor quantizer in an 8-bit container.

    Codes are clip(round(x / scale) + zero_point) with round half to even. Below 8 bits a Clip to [low, high] in front
    of QuantizeLinear keeps the codes inside of the smaller range, so the 8-bit kernels run unchanged.

    Attributes:
        scale, zero_point: float32 scale, and a zero point in the type of the codes: uint8, or int8 and 0.
        low, high: smallest and largest value that has a code.
        bits: how many bits the codes use.
    """

    scale: np.float32
    zero_point: np.uint8 | np.int8
    low: np.float32
    high: np.float32
    bits: int

    @classmethod
    def fit(
        cls,
        low: float,
        high: float,
        bits: int,
        scheme: Literal["asymmetric", "symmetric"] = "asymmetric",
        *,
        signed: bool = False,
    ) -> ActivationQuantizer:
        """Cover [low, high] and zero.

        Asymmetric: 2^bits codes over [min(low, 0), max(high, 0)]. Symmetric: 2^bits - 1 codes around 128, since
        ONNX Runtime fuses unsigned activations in every case and signed ones not where several products share them;
        `signed` ones around 0 are for targets that know no zero point, and always symmetric.

        Raises:
            ActivationError: an end of the range is NaN or infinite.
        """
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ActivationError(
                f"no quantizer covers the range [{low}, {high}]",
                remedy="calibrate again: `spq-graph calibrate` names the first site that is not finite",
            )
        low, high = min(low, 0.0), max(high, 0.0)
        if scheme == "symmetric" or signed:
            steps = 2 ** (bits - 1) - 1
            zero_point, below, above = 128, steps, steps
            scale = np.float32(max(max(-low, high) / steps, SMALLEST))
        else:
            top = 2**bits - 1
            scale = np.float32(max((high - low) / top, SMALLEST))
            zero_point = below = min(round(-low / float(scale)), top)
            above = top - below
        low, high = (min(float(scale) * count, _LARGEST) for count in (below, above))
        zero = np.int8(0) if signed else np.uint8(zero_point)
        return cls(scale, zero, np.float32(-low), np.float32(high), bits)


def top_code(bits: int) -> int:
    """The largest code of a symmetric quantizer: 2^(bits-1) - 1."""
    return int(2 ** (bits - 1) - 1)


def absmax_of(blocks: Iterable[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Largest absolute value by column of a weight [K, N] that comes in blocks of rows, float32 [N]."""
    parts = (np.maximum(block.max(axis=0), -block.min(axis=0)) for block in blocks)
    return functools.reduce(np.maximum, parts)


def scales_to(
    absmax: npt.NDArray[np.float32], largest: float, granularity: Literal["per_channel", "per_tensor"]
) -> npt.NDArray[np.float32]:
    """Scales that bring the absmax of each column, float32 [N], to the largest code's value, float32 [N] or [].

    Raises:
        GraphError: the weight holds NaN or infinity.
    """
    if granularity == "per_tensor":
        absmax = absmax.max()
    return _positive(absmax / np.float32(largest))


def _positive(scales: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scales that can be divided by: of zeros, any scale will do."""
    if not np.isfinite(scales).all():
        raise GraphError(
            "the weight holds NaN or infinity", remedy="the checkpoint is damaged: download or export it again"
        )
    found = np.where(scales > SMALLEST, scales, np.float32(1.0)).astype(np.float32)
    found.flags.writeable = False  # the graph's constant and what it is held against are one array
    return found


def weight_codes(weight: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.int8]:
    """Codes of a weight [K, N], round half to even, within plus or minus 2^(bits-1) - 1, int8 [K, N]."""
    top = top_code(bits)
    ratio = weight / scales
    np.clip(np.rint(ratio, out=ratio), -top, top, out=ratio)
    return ratio.astype(np.int8)


# A code is the nearest to a weight, but for what float32 rounds of their quotient.
_STEP = 0.5 + 1e-4


def near(
    weight: npt.NDArray[np.float32], codes: npt.NDArray[np.integer[Any]], scales: npt.NDArray[np.float32], zero: int = 0
) -> bool:
    """Whether every code stands for its weight within half a step: |weight - (code - zero) * scale| <= scale / 2.

    Args:
        weight: [K, N], or rows of one.
        codes: in its shape.
        scales: that broadcast to it.
        zero: the code of zero.
    """
    found = codes.astype(np.float32)
    if zero:
        found -= zero
    found *= scales
    found -= weight
    np.abs(found, out=found)
    # The largest of each column first: where scales do not vary along rows, a comparison of N numbers is left.
    worst = found.max(axis=0) if scales.ndim < 2 else found
    return bool((worst <= scales * np.float32(_STEP)).all())


def block_size_for(rows: int) -> int:
    """The largest of 128, 64, 32 that divides K, so that no padding is stored; 32 where none does."""
    return next((block for block in (128, 64, 32) if rows % block == 0), 32)


def blocked_scales(weight: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    """Symmetric scales of blocks along K of a weight [K, N], or of rows of one, float32 [N, blocks].

    Raises:
        GraphError: the weight holds NaN or infinity.
    """
    return _positive(np.abs(_in_blocks(weight, block)).max(axis=1) / np.float32(127)).T


def blocked_codes(
    weight: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], block: int
) -> npt.NDArray[np.uint8]:
    """Codes of a weight [K, N] by the scales of its blocks [N, blocks], around 128, uint8 [K, N]."""
    ratio = _in_blocks(weight, block) / scales.T[:, None, :]
    np.clip(np.rint(ratio, out=ratio), -127, 127, out=ratio)
    ratio += 128
    return ratio.astype(np.uint8).reshape(-1, weight.shape[1])[: len(weight)]


def _in_blocks(weight: npt.NDArray[np.float32], block: int) -> npt.NDArray[np.float32]:
    """[blocks, block, N]; rows of zeros fill the last block."""
    rows, columns = weight.shape
    missing = -rows % block
    whole = np.pad(weight, ((0, missing), (0, 0))) if missing else weight
    return whole.reshape(-1, block, columns)
