"""A site's weight as it is stored: made by blocks when it is written, and held against the source block by block.

A weight is never held whole in float32. While its blocks are at hand, what was made of them is decoded and compared:
nothing is written that does not stand for the weight within half a step, and the weight is not read again for that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.errors import CheckError, GraphError
from spq_graph.passes.editor import Operand
from spq_graph.passes.fp8 import WEIGHTS, fp8_near, fp8_weight_codes, pack_panels, panel_shape, unpack_panels
from spq_graph.passes.scales import (
    block_size_for,
    blocked_codes,
    blocked_scales,
    near,
    scales_to,
    top_code,
    weight_codes,
)

Granularity = Literal["per_channel", "per_tensor"]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[Any]
FP8 = ir.DataType(WEIGHTS.element_type)


@dataclass(frozen=True)
class Storage(ABC):
    """How a form stores the weight [K, N] of an operand.

    Attributes:
        operand: the source's weight.
    """

    operand: Operand

    @property
    @abstractmethod
    def dtype(self) -> ir.DataType:
        """Element type of what is stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is stored."""
        return self.operand.shape

    @property
    def words(self) -> str:
        """What it is, for people."""
        return f"{self.dtype.name.lower()} {list(self.shape)}"

    @property
    def scales(self) -> Floats | None:
        """The scales beside it, in the shape in which the graph has them; None where there are none.

        Raises:
            GraphError: the weight holds NaN or infinity.
        """
        return None

    @abstractmethod
    def encode(self, block: Floats, rows: slice) -> Codes:
        """The codes of some rows of the weight, in the shape of the block, [rows, N]."""

    @abstractmethod
    def near(self, block: Floats, codes: Codes, rows: slice) -> bool:
        """Whether codes of some rows stand for them within half a step; what they stand for is computed afresh."""

    def pack(self, codes: Codes) -> Codes:
        """Codes [K, N] as they are stored."""
        return codes

    def unpack(self, stored: Codes) -> Codes:
        """The codes [K, N] in what is stored: the inverse of `pack`."""
        return stored

    def tensor(self, name: str, key: str) -> Encoded:
        """What is stored, as a constant of the graph for the site of that key."""
        return Encoded(self, name, key)


class Encoded(ir.LazyTensor):
    """What a `Storage` makes of a weight; made when it is read, and held against the weight then.

    Reading it raises CheckError where what was made does not stand for the weight.
    """

    __slots__ = ("key", "storage")

    def __init__(self, storage: Storage, name: str, key: str) -> None:
        super().__init__(self._made, dtype=storage.dtype, shape=ir.Shape(storage.shape), name=name)
        self.storage = storage
        self.key = key

    def __repr__(self) -> str:
        return f"{self._repr_base()}({type(self.storage).__name__} of {self.key!r})"

    def _made(self) -> ir.TensorProtocol:
        storage, operand = self.storage, self.storage.operand
        codes = np.empty(operand.shape, dtype=storage.dtype.numpy())
        for rows, block in operand.blocks():
            codes[rows] = storage.encode(block, rows)
            if not storage.near(block, codes[rows], rows):
                raise CheckError(
                    f"what was made of a weight does not stand for it (rows {rows.start} to {rows.stop - 1})",
                    where=f"{self.key} ({self.name})",
                    remedy="please report this",
                )
        return ir.tensor(storage.pack(codes), dtype=storage.dtype)


def unlike(storage: Storage, stored: ir.TensorProtocol) -> str | None:
    """How what is stored differs from the weight that it is to stand for, in words; None where it does not.

    What `Encoded` holds of the same weight is compared when it is made; anything else is read and decoded here.
    """
    if isinstance(stored, Encoded) and stored.storage == storage:
        return None
    codes = storage.unpack(np.asarray(stored.numpy()))
    for rows, block in storage.operand.blocks():
        if not storage.near(block, codes[rows], rows):
            return f"rows {rows.start} to {rows.stop - 1} of its weight are not the source's within half a step"
    return None


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
    """8 bits with a scale for each block of K, as com.microsoft.MatMulNBits wants it: uint8 [N, blocks, block]."""

    @property
    def dtype(self) -> ir.DataType:
        """Uint8."""
        return ir.DataType.UINT8

    @property
    def block(self) -> int:
        """Rows of K that share a scale."""
        return block_size_for(self.operand.shape[0])

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
        return Blocks(self.operand).by_block

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
        raise GraphError(f"a weight of {largest:.4g} does not fit float16", where=key, remedy="keep it in fp32")
    return Halves(operand, half)
