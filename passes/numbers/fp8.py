"""FP8 formats, scales, codes and their panel layout, and what the operator computes, in numpy and without a graph."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from spq_graph.passes.numbers.scales import SMALLEST
from spq_graph.terms.errors import ActivationError, GraphError
from spq_graph.terms.precision import Precision

# Codes lie as a kernel reads them: a panel is 32 columns wide, and each of its rows holds a pair of rows of the weight
# in 64 bytes, one cache line, so that two products at a time fall into one 32-bit lane.
PANEL = 32
PAIR = 2
ROW = PANEL * PAIR
OLDEST_OPSET = 19  # the first that has FP8
_MOST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Fp8Format:
    """An 8-bit floating-point format of ONNX.

    Attributes:
        name: as precisions and names in a file have it.
        dtype: its numpy type.
        largest: its largest finite number.
        element_type: its number in ONNX's TensorProto.DataType.
    """

    name: str
    dtype: npt.DTypeLike
    largest: float
    element_type: int


E4M3 = Fp8Format("fp8_e4m3", ml_dtypes.float8_e4m3fn, 448.0, 17)
E5M2 = Fp8Format("fp8_e5m2", ml_dtypes.float8_e5m2, 57344.0, 19)

# What activations are rounded to. Weights are E4M3 in all cases: activations need the range, weights the precision, and
# tensor cores multiply E5M2 by E4M3 but not by E5M2.
ACTIVATIONS: dict[Precision, Fp8Format | None] = {
    precision: {E4M3.name: E4M3, E5M2.name: E5M2}.get(precision.row.activations or "")
    for precision in Precision
    if precision.is_fp8
}
WEIGHTS = E4M3


def activation_scale(low: float, high: float, form: Fp8Format) -> np.float32:
    """The scale that puts the larger end of [low, high] on the largest number of a format; never zero, float32 [].

    Raises:
        ActivationError: an end of the range is NaN, infinite, or beyond float32.
    """
    if not all(abs(end) <= _MOST for end in (low, high)):
        raise ActivationError(
            f"no FP8 scale covers the range [{low}, {high}]",
            remedy="calibrate again: `spq-graph calibrate` names the first site that is not finite",
        )
    # A subnormal scale would overflow its reciprocal; an activation that is always zero gets it too.
    return np.float32(max(max(abs(low), abs(high)) / form.largest, SMALLEST))


def fp8_weight_codes(
    weight: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], form: Fp8Format = WEIGHTS
) -> npt.NDArray[np.uint8]:
    """Codes of a weight [K, N], uint8 [K, N]: divided in float32, rounded to nearest even, saturated.

    Raises:
        GraphError: the weight holds NaN or infinity.
    """
    ratio = weight / scales
    if not np.isfinite(ratio).all():
        raise GraphError(
            "the weight holds NaN or infinity", remedy="the checkpoint is damaged: download or export it again"
        )
    codes: npt.NDArray[np.uint8] = np.clip(ratio, -form.largest, form.largest).astype(form.dtype).view(np.uint8)
    return codes


def fp8_near(
    weight: npt.NDArray[np.float32],
    codes: npt.NDArray[np.uint8],
    scales: npt.NDArray[np.float32],
    form: Fp8Format = WEIGHTS,
) -> bool:
    """Whether every code stands for its weight [K, N] within half a step: between the midpoints to its neighbours."""
    ratio = weight / scales
    np.clip(ratio, -form.largest, form.largest, out=ratio)
    low, high = _bounds(form)
    return bool((low[codes] <= ratio).all() and (ratio <= high[codes]).all())


@cache
def _bounds(form: Fp8Format) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The smallest and the largest number that each of the 256 codes is the nearest to; none for those of NaN."""
    values = decode(np.arange(256, dtype=np.uint8), form)
    numbers = np.unique(values[np.abs(values) <= form.largest]).astype(np.float64)
    middles = (numbers[1:] + numbers[:-1]) / 2
    place = np.searchsorted(numbers, values)
    low = np.append(np.append(-np.inf, middles), np.inf)[place]
    high = np.append(np.append(middles, np.inf), -np.inf)[place]
    finite = np.abs(values) <= form.largest
    return np.where(finite, low, np.inf).astype(np.float32), np.where(finite, high, -np.inf).astype(np.float32)


def decode(codes: npt.NDArray[np.uint8], form: Fp8Format = WEIGHTS) -> npt.NDArray[np.float32]:
    """The numbers that codes stand for, float32 in the shape of the codes; exact."""
    return codes.view(form.dtype).astype(np.float32)


def panel_shape(shape: tuple[int, int]) -> tuple[int, int, int]:
    """Shape of the panels of a weight [K, N]: [ceil(N / 32), ceil(K / 2), 64]."""
    rows, columns = shape
    return -(-columns // PANEL), -(-rows // PAIR), ROW


def pack_panels(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Lay codes [K, N] out in panels, uint8 [ceil(N / 32), ceil(K / 2), 64]; the padding is code 0, which is +0.0.

    Byte 16*l + 8*h + 2*j + p of panel n, pair k is the code at row 2*k + p, column 32*n + 16*h + 4*l + j.
    """
    panels, pairs, _ = shape = panel_shape((codes.shape[0], codes.shape[1]))
    padded = np.zeros((pairs * PAIR, panels * PANEL), dtype=np.uint8)
    padded[: codes.shape[0], : codes.shape[1]] = codes
    # Axes: pair, p, panel, h, l, j.
    split = padded.reshape(pairs, PAIR, panels, 2, 4, 4)
    return np.ascontiguousarray(split.transpose(2, 0, 4, 3, 5, 1)).reshape(shape)


def unpack_panels(panels: npt.NDArray[np.uint8], shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The codes [K, N] that panels hold, uint8: the inverse of `pack_panels`."""
    count, pairs, _ = panels.shape
    split = panels.reshape(count, pairs, 4, 2, 4, PAIR)
    padded = split.transpose(1, 5, 0, 3, 2, 4).reshape(pairs * PAIR, count * PANEL)
    return np.ascontiguousarray(padded[: shape[0], : shape[1]])


def rounded(values: npt.NDArray[np.float32], scale: np.float32, form: Fp8Format) -> npt.NDArray[np.float32]:
    """Values in units of a scale, rounded to a format, float32 in their shape.

    Divided in float32 and rounded to nearest even. Finite values beyond the largest number become that number;
    infinities and NaN stay what they are.
    """
    with np.errstate(over="ignore"):  # a quotient beyond float32 saturates like any other
        ratio = np.asarray(values / scale, dtype=np.float32)
    codes = np.clip(ratio, -form.largest, form.largest).astype(form.dtype)
    return np.where(np.isinf(values), values, codes.astype(np.float32))


def fp8_matmul_reference(
    a: npt.NDArray[Any],
    panels: npt.NDArray[np.uint8],
    b_scale: npt.NDArray[np.float32],
    a_scale: np.float32,
    shape: tuple[int, int],
    *,
    activations: Fp8Format | None,
    weights: Fp8Format = WEIGHTS,
) -> npt.NDArray[Any]:
    """What spq::Fp8MatMul computes, but for the order of its float32 sums: here they are float64, rounded once.

    Args:
        a: float32 or float16 [..., K].
        panels: the weight's codes, uint8 [ceil(N / 32), ceil(K / 2), 64].
        b_scale: float32 [N], [1] or [].
        a_scale: float32 [].
        shape: K and N.
        activations: the format that `a` is rounded to; None leaves it as it is, and `a_scale` unused.
        weights: the format of the codes.

    Returns:
        [..., N] in the type of `a`.
    """
    wide = a.astype(np.float32)
    factor = np.float64(1.0)
    if activations is not None:
        wide, factor = rounded(wide, a_scale, activations), np.float64(a_scale)
    weight = decode(unpack_panels(panels, shape), weights) * b_scale
    with np.errstate(over="ignore", invalid="ignore"):  # infinities of the activation are carried, not warned of
        total = (wide.astype(np.float64) @ weight.astype(np.float64)) * factor
        result: npt.NDArray[Any] = total.astype(np.float32).astype(a.dtype)
    return result
