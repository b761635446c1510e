"""A site's weight as it is stored, made by blocks of rows when it is written, never held whole in float32."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.errors import GraphError
from spq_graph.passes.editor import Operand
from spq_graph.passes.fp8 import WEIGHTS, fp8_weight_codes
from spq_graph.passes.scales import BlockedWeight, block_size_for, blocked_weight, scales_to, top_code, weight_codes

Granularity = Literal["per_channel", "per_tensor"]


def integer_scales(operand: Operand, bits: int, granularity: Granularity = "per_channel") -> npt.NDArray[np.float32]:
    """Symmetric scales, float32 [N] or [].

    Raises:
        GraphError: the weight holds NaN or infinity.
    """
    return scales_to(operand.absmax(), top_code(bits), granularity)


def integer_codes(operand: Operand, scales: npt.NDArray[np.float32], bits: int, name: str) -> ir.LazyTensor:
    """Symmetric codes, int8 [K, N]."""
    return ir.LazyTensor(
        lambda: ir.tensor(operand.encoded(lambda block: weight_codes(block, scales, bits), np.int8)),
        dtype=ir.DataType.INT8,
        shape=ir.Shape(operand.shape),
        name=name,
    )


def fp8_scales(operand: Operand, granularity: Granularity = "per_channel") -> npt.NDArray[np.float32]:
    """Scales of FP8 codes, float32 [N] or [].

    Raises:
        GraphError: the weight holds NaN or infinity.
    """
    return scales_to(operand.absmax(), WEIGHTS.largest, granularity)


def fp8_codes(operand: Operand, scales: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """FP8 codes, uint8 [K, N]."""
    return operand.encoded(lambda block: fp8_weight_codes(block, scales), np.uint8)


def in_blocks(operand: Operand) -> BlockedWeight:
    """8 bits with a scale for each block of K, as com.microsoft.MatMulNBits wants it.

    Raises:
        GraphError: the weight holds NaN or infinity.
    """
    rows, columns = operand.shape
    size = block_size_for(rows)
    shape = (columns, -(-rows // size))
    codes = np.empty((*shape, size), dtype=np.uint8)
    scales = np.empty(shape, dtype=np.float32)
    for part, block in operand.blocks():
        made = blocked_weight(block, size)
        place = slice(part.start // size, part.start // size + made.codes.shape[1])
        codes[:, place], scales[:, place] = made.codes, made.scales
    return BlockedWeight(codes, scales, size)


def half_weight(operand: Operand, half: ir.DataType, key: str, name: str) -> ir.LazyTensor:
    """A weight [K, N] in half precision; `key` is its site's, for the error.

    Raises:
        GraphError: it does not fit float16.
    """
    largest = float(operand.absmax().max())
    if half is ir.DataType.FLOAT16 and largest > float(np.finfo(np.float16).max):
        raise GraphError(f"a weight of {largest:.4g} does not fit float16", where=key, remedy="keep it in fp32")
    return ir.LazyTensor(
        lambda: ir.tensor(operand.encoded(lambda block: block.astype(half.numpy()), half.numpy()), dtype=half),
        dtype=half,
        shape=ir.Shape(operand.shape),
        name=name,
    )
