"""A site's weight as it is stored: made by blocks when it is written, and held against the source block by block.

A weight is never held whole in float32. While its blocks are at hand, what was made of them is decoded and compared:
nothing is written that does not stand for the weight within half a step, and the weight is not read again for that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.stock import Codes, Stock
from spq_graph.terms.errors import CheckError

Granularity = Literal["per_channel", "per_tensor"]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Storage(ABC):
    """How a form stores the weight [K, N] of an operand.

    Attributes:
        operand: the source's weight.
    """

    operand: Operand

    @property
    def known_scales(self) -> Floats:
        """The scales, of a form that has some."""
        assert self.scales is not None
        return self.scales

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

    def tensor(self, name: str, key: str, stock: Stock | None = None) -> Encoded:
        """What is stored, as a constant of the graph for the site of that key; its codes may be in stock."""
        return Encoded(self, name, key, stock or Stock())


class Encoded(ir.LazyTensor):
    """What a `Storage` makes of a weight; made when it is read, and held against the weight then.

    Reading it raises CheckError where what was made does not stand for the weight.
    """

    __slots__ = ("key", "stock", "storage")

    def __init__(self, storage: Storage, name: str, key: str, stock: Stock) -> None:
        super().__init__(self._stored, dtype=storage.dtype, shape=ir.Shape(storage.shape), name=name)
        self.storage = storage
        self.key = key
        self.stock = stock

    def __repr__(self) -> str:
        return f"{self._repr_base()}({type(self.storage).__name__} of {self.key!r})"

    def _stored(self) -> ir.TensorProtocol:
        return ir.Tensor(self.stock.codes(self.storage, self._made), dtype=self.storage.dtype)

    def _made(self) -> Codes:
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
        stored = storage.pack(codes)
        if stored is not codes and not _same_bytes(storage.unpack(stored), codes):
            raise CheckError(
                "what was packed of a weight does not hold its codes",
                where=f"{self.key} ({self.name})",
                remedy="please report this",
            )
        return stored


def _same_bytes(one: Codes, other: Codes) -> bool:
    """Whether two arrays hold the same, whatever a type takes for equal."""
    if one is other:
        return True
    kind = np.dtype(f"u{one.dtype.itemsize}")
    return bool(np.array_equal(np.ascontiguousarray(one).view(kind), np.ascontiguousarray(other).view(kind)))


def unlike(storage: Storage, stored: ir.TensorProtocol) -> str | None:
    """How what is stored differs from the weight that it is to stand for, in words; None where it does not.

    What `Encoded` holds of the same weight is compared when it is made; anything else is read and decoded here.
    """
    if isinstance(stored, Encoded) and stored.storage == storage:
        return None
    found = np.asarray(stored.numpy())
    codes = storage.unpack(found)
    if not _same_bytes(storage.pack(codes), found):
        return "what fills up its weight's codes is not what its form has there"
    for rows, block in storage.operand.blocks():
        if not storage.near(block, codes[rows], rows):
            return f"rows {rows.start} to {rows.stop - 1} of its weight are not the source's within half a step"
    return None
