"""The panel layout of spq::Int8MatMul, and what the operator computes, in numpy and without a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spq_graph.passes.numbers.scales import SMALLEST

COLUMNS, DEPTH, FOUR = 32, 64, 4
STEP = COLUMNS * DEPTH
MOST_DEPTH = 65536  # 255 * 128 * K fits into 31 bits
Floats = npt.NDArray[np.float32]


def int8_panel_shape(shape: tuple[int, int]) -> tuple[int, int, int]:
    """Shape of the panels of a weight [K, N]: [ceil(N / 32), ceil(K / 64), 2048]."""
    rows, columns = shape
    return -(-columns // COLUMNS), -(-rows // DEPTH), STEP


def pack_int8_panels(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """Lay codes [K, N] out in panels, int8 [ceil(N / 32), ceil(K / 64), 2048]; zeros fill them up.

    Byte 128*q + 4*j + p of panel n, step s is the code at row 64*s + 4*q + p, column 32*n + j.
    """
    panels, steps, _ = shape = int8_panel_shape((codes.shape[0], codes.shape[1]))
    padded = np.zeros((steps * DEPTH, panels * COLUMNS), dtype=np.int8)
    padded[: codes.shape[0], : codes.shape[1]] = codes
    split = padded.reshape(steps, DEPTH // FOUR, FOUR, panels, COLUMNS)
    return np.ascontiguousarray(split.transpose(3, 0, 1, 4, 2)).reshape(shape)


def unpack_int8_panels(panels: npt.NDArray[np.int8], shape: tuple[int, int]) -> npt.NDArray[np.int8]:
    """The codes [K, N] that panels hold, int8: the inverse of `pack_int8_panels`."""
    count, steps, _ = panels.shape
    split = panels.reshape(count, steps, DEPTH // FOUR, COLUMNS, FOUR).transpose(1, 2, 4, 0, 3)
    return np.ascontiguousarray(split.reshape(steps * DEPTH, count * COLUMNS)[: shape[0], : shape[1]])


def token_quantizers(a: Floats, channels: npt.NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Scale and zero point of every row of A [M, K] without some channels, both float32 [M, 1]."""
    kept = a.copy()
    kept[:, channels] = 0
    low, high = kept.min(axis=1, keepdims=True, initial=0), kept.max(axis=1, keepdims=True, initial=0)
    scale = np.maximum(high / np.float32(255) - low / np.float32(255), np.float32(SMALLEST))
    return scale, np.rint(np.clip(-low / scale, 0, 255)).astype(np.float32)


def int8_matmul_reference(
    a: npt.NDArray[Any],
    codes: npt.NDArray[np.int8],
    b_scale: Floats,
    bias: Floats,
    quantizer: tuple[np.float32, np.uint8] | None = None,
    branch: tuple[npt.NDArray[np.int64], npt.NDArray[np.float16]] | None = None,
) -> npt.NDArray[Any]:
    """What spq::Int8MatMul computes, but for roundings behind its integer sums: here they are float64, rounded once.

    Args:
        a: float32 or float16 [..., K].
        codes: of the weight, [K, N].
        b_scale: float32 [N], [1] or [].
        bias: float32 [N], [1] or [].
        quantizer: scale and zero point of the activations; None fits them to every row.
        branch: channels [C], which do not count for a row's range, and rows of the weight [C, N] that they go through;
            `codes` has zeros in those rows.

    Returns:
        [..., N] in the type of `a`.
    """
    x = a.astype(np.float32).reshape(-1, codes.shape[0])
    none = np.zeros(0, np.int64), np.zeros((0, codes.shape[1]), np.float16)
    channels, rows = branch if branch is not None else none
    scale, zero = token_quantizers(x, channels)
    if quantizer is not None:
        scale, zero = (np.full_like(scale, number) for number in quantizer)
    with np.errstate(over="ignore"):  # a quotient beyond float32 saturates like any other
        units = np.rint(x / scale)
    quantized = np.clip(units, -zero, 255 - zero).astype(np.int64)
    total = (quantized @ codes.astype(np.int64)) * scale.astype(np.float64) * b_scale + bias
    total += x[:, channels].astype(np.float64) @ rows.astype(np.float64)
    with np.errstate(over="ignore"):
        result: npt.NDArray[Any] = total.astype(np.float32).astype(a.dtype).reshape(*a.shape[:-1], -1)
    return result
