"""Every way to store a weight: integers, FP8, blocks, half precision."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import FP8
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.stock import Codes
from spq_graph.passes.forms.encode import Floats, Granularity, Storage
from spq_graph.passes.numbers.fp8 import WEIGHTS, fp8_near, fp8_weight_codes, pack_panels, panel_shape, unpack_panels
from spq_graph.passes.numbers.int8 import int8_panel_shape, pack_int8_panels, unpack_int8_panels
from spq_graph.passes.numbers.scales import (
    block_size_for,
    blocked_codes,
    blocked_scales,
    near,
    scales_to,
    top_code,
    weight_codes,
)
from spq_graph.terms.errors import GraphError


@dataclass(frozen=True)
class Integers(Storage):
    """Symmetric codes, int8 [K, N], with scales [N] or [].

    Attributes:
        bits: of the codes.
        granularity: of the scales.
    """

    bits: int
    granularity: Granularity = "per_channel"

    @property
    def dtype(self) -> ir.DataType:
        """Int8."""
        return ir.DataType.INT8

    @cached_property
    def scales(self) -> Floats:
        """Float32 [N] or []."""
        return scales_to(self.operand.absmax(), top_code(self.bits), self.granularity)

    def encode(self, block: Floats, rows: slice) -> Codes:
        """Rounded to the nearest code."""
        return weight_codes(block, self.scales, self.bits)

    def near(self, block: Floats, codes: Codes, rows: slice) -> bool:
        """By the definition of a code: its product with the scale."""
        return near(block, codes, self.scales)


@dataclass(frozen=True)
class Int8Panels(Integers):
    """Symmetric codes as spq::Int8MatMul reads them, in panels [ceil(N / 32), ceil(K / 64), 2048]."""

    @property
    def words(self) -> str:
        """What it is, for people."""
        return f"INT8 panels {list(self.shape)}"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the panels."""
        rows, columns = self.operand.shape
        return int8_panel_shape((rows, columns))

    def pack(self, codes: Codes) -> Codes:
        """Padding is code 0."""
        return pack_int8_panels(codes)

    def unpack(self, stored: Codes) -> Codes:
        """Without the padding."""
        rows, columns = self.operand.shape
        return unpack_int8_panels(stored, (rows, columns))


@dataclass(frozen=True)
class Fp8Codes(Storage):
    """E4M3 codes [K, N], with scales [N] or []."""

    granularity: Granularity = "per_channel"

    @property
    def dtype(self) -> ir.DataType:
        """FLOAT8E4M3FN."""
        return FP8

    @cached_property
    def scales(self) -> Floats:
        """Float32 [N] or []."""
        return scales_to(self.operand.absmax(), WEIGHTS.largest, self.granularity)

    def encode(self, block: Floats, rows: slice) -> Codes:
        """Rounded to the nearest number of the format, in its own type."""
        return fp8_weight_codes(block, self.scales).view(WEIGHTS.dtype)

    def near(self, block: Floats, codes: Codes, rows: slice) -> bool:
        """By the spacing of the format's numbers where the weight lies."""
        return fp8_near(block, codes.view(np.uint8), self.scales)


@dataclass(frozen=True)
class Fp8Panels(Fp8Codes):
    """E4M3 codes as the operator reads them, in panels [ceil(N / 32), ceil(K / 2), 64]."""

    @property
    def words(self) -> str:
        """What it is, for people."""
        return f"FP8 panels {list(self.shape)}"

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the panels."""
        rows, columns = self.operand.shape
        return panel_shape((rows, columns))

    def pack(self, codes: Codes) -> Codes:
        """Padding is code 0."""
        return pack_panels(codes.view(np.uint8)).view(WEIGHTS.dtype)

    def unpack(self, stored: Codes) -> Codes:
        """Without the padding."""
        rows, columns = self.operand.shape
        return unpack_panels(stored.view(np.uint8), (rows, columns)).view(WEIGHTS.dtype)


@dataclass(frozen=True)
class Blocks(Storage):
    """8 bits with a scale for each block of K, as com.microsoft.MatMulNBits wants it: uint8 [N, blocks, block].

    Attributes:
        size: of a block; None for the largest of 128, 64 and 32 that divides K.
    """

    size: int | None = None

    @property
    def dtype(self) -> ir.DataType:
        """Uint8."""
        return ir.DataType.UINT8

    @property
    def block(self) -> int:
        """Rows of K that share a scale."""
        return self.size or block_size_for(self.operand.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, blocks, block]."""
        rows, columns = self.operand.shape
        return columns, -(-rows // self.block), self.block

    @cached_property
    def by_block(self) -> Floats:
        """Scales, float32 [N, blocks].

        Raises:
            GraphError: the weight holds NaN or infinity.
        """
        scales = np.empty(self.shape[:2], dtype=np.float32)
        for rows, block in self.operand.blocks():
            scales[:, self._place(rows)] = blocked_scales(block, self.block)
        scales.flags.writeable = False
        return scales

    @property
    def scales(self) -> Floats:
        """Float32 [N * blocks]."""
        return self.by_block.reshape(-1)

    def _place(self, rows: slice) -> slice:
        return slice(rows.start // self.block, -(-rows.stop // self.block))

    def encode(self, block: Floats, rows: slice) -> Codes:
        """Symmetric around 128."""
        return blocked_codes(block, self.by_block[:, self._place(rows)], self.block)

    def near(self, block: Floats, codes: Codes, rows: slice) -> bool:
        """By the definition of a code: its distance from 128 times the scale of its block."""
        scales = np.repeat(self.by_block[:, self._place(rows)].T, self.block, axis=0)[: len(block)]
        return near(block, codes, scales, zero=128)

    def pack(self, codes: Codes) -> Codes:
        """Rows that only fill the last block hold 128, which is zero."""
        columns, blocks, size = self.shape
        padded = np.full((columns, blocks * size), 128, dtype=np.uint8)
        padded[:, : len(codes)] = codes.T
        return padded.reshape(columns, blocks, size)

    def unpack(self, stored: Codes) -> Codes:
        """Without what fills the last block."""
        columns, blocks, size = self.shape
        return stored.reshape(columns, blocks * size)[:, : self.operand.shape[0]].T


@dataclass(frozen=True)
class SignedBlocks(Blocks):
    """The same for DequantizeLinear with blocks: int8 [K, N] around 0, with scales [blocks, N]."""

    @property
    def dtype(self) -> ir.DataType:
        """Int8."""
        return ir.DataType.INT8

    @property
    def shape(self) -> tuple[int, ...]:
        """[K, N]."""
        return self.operand.shape

    @cached_property
    def by_block(self) -> Floats:
        """Scales, float32 [N, blocks]."""
        return Blocks(self.operand, self.size).by_block

    @property
    def scales(self) -> Floats:
        """Float32 [blocks, N]."""
        return np.ascontiguousarray(self.by_block.T)

    def encode(self, block: Floats, rows: slice) -> Codes:
        """Symmetric around 0."""
        return (super().encode(block, rows).astype(np.int16) - 128).astype(np.int8)

    def near(self, block: Floats, codes: Codes, rows: slice) -> bool:
        """By the definition of a code: its product with the scale of its block."""
        scales = np.repeat(self.by_block[:, self._place(rows)].T, self.block, axis=0)[: len(block)]
        return near(block, codes, scales)

    def pack(self, codes: Codes) -> Codes:
        """As they are."""
        return codes

    def unpack(self, stored: Codes) -> Codes:
        """As they are."""
        return stored


@dataclass(frozen=True)
class Halves(Storage):
    """The weight in float16 or bfloat16, [K, N].

    Attributes:
        half: which of the two.
    """

    half: ir.DataType

    @property
    def dtype(self) -> ir.DataType:
        """The half precision."""
        return self.half

    def encode(self, block: Floats, rows: slice) -> Codes:
        """Rounded to nearest even."""
        return block.astype(self.half.numpy())

    def near(self, block: Floats, codes: Codes, rows: slice) -> bool:
        """Bit for bit: there is one nearest number."""
        return bool(np.array_equal(codes.view(np.uint16), block.astype(self.half.numpy()).view(np.uint16)))


def half_weight(operand: Operand, half: ir.DataType, key: str) -> Halves:
    """A weight [K, N] in half precision; `key` is its site's, for the error.

    Raises:
        GraphError: it does not fit float16.
    """
    largest = float(operand.absmax().max())
    if half is ir.DataType.FLOAT16 and largest > float(np.finfo(np.float16).max):
        raise GraphError(
            f"a weight of {largest:.4g} does not fit float16",
            where=key,
            remedy=f'in the recipe: overrides = [{{pattern = "{key}", precision = "fp32"}}]',
        )
    return Halves(operand, half)
