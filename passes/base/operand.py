"""The weight of a site as its product sees it, some rows at a time; a table as the product of a head would see it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.passes.base.values import FLOATS, Weight, attribute_of, is_lookup, is_product, weight_of
from spq_graph.passes.numbers.scales import absmax_of

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 128


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """The constant operand of a site: the initializer, and how it lies.

    Equal to another that sees the same numbers in the same shape: the table of an embedding is what a head reads that
    is tied to it.

    Attributes:
        weight: the initializer behind it.
        flipped: whether the product reads it transposed.
        without: rows of K that count as zeros, in ascending order.
    """

    weight: Weight
    flipped: bool
    without: tuple[int, ...] = ()

    @property
    def _what(self) -> tuple[object, bool, tuple[int, ...]]:
        return self.weight.numbers, self.weight.transposed is not self.flipped, self.without

    def __eq__(self, other: object) -> bool:
        return self._what == other._what if isinstance(other, Operand) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._what)

    @property
    def dtype(self) -> ir.DataType:
        """Element type that the product computes in."""
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """K and N."""
        return self.weight.shape[::-1] if self.flipped else self.weight.shape

    @property
    def axes(self) -> tuple[int, int]:
        """Along which axes of the initializer K and N lie."""
        return (1, 0) if self.weight.transposed is not self.flipped else (0, 1)

    def leaving_out(self, rows: Sequence[int]) -> Operand:
        """The same with zeros in these rows of K, in ascending order."""
        return replace(self, without=tuple(rows))

    def rows(self, rows: Sequence[int]) -> npt.NDArray[np.float32]:
        """These rows of K as they are, float32 [rows, N]."""
        return self.weight.cast(self._stored()[list(rows)])

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """The weight as the product sees it, [K, N], by some rows at a time as float32: memory never holds it all.

        Blocks start at multiples of 128 rows.
        """
        stored = self._stored()
        rows, columns = stored.shape
        step = max(1, BLOCK_BYTES // (4 * columns * BLOCK_ROWS)) * BLOCK_ROWS
        for start in range(0, rows, step):
            found = slice(start, min(start + step, rows))
            yield found, self._zeroed(self.weight.cast(stored[found]), found)

    def _stored(self) -> npt.NDArray[Any]:
        stored = self.weight.stored()
        return stored.T if self.flipped else stored

    def _zeroed(self, block: npt.NDArray[np.float32], rows: slice) -> npt.NDArray[np.float32]:
        zeros = [row - rows.start for row in self.without if rows.start <= row < rows.stop]
        if not zeros:
            return block
        block = np.array(block)  # it may be a view of the file
        block[zeros] = 0.0
        return block

    def absmax(self) -> npt.NDArray[np.float32]:
        """Largest absolute value by column, float32 [N]."""
        return absmax_of(block for _, block in self.blocks())


def operand_of(node: ir.Node) -> Operand | None:
    """The constant operand of a product, or the table that a lookup takes rows of; None where there is none.

    A table [tokens, channels] is seen as a head would read it, [K, N] of channels and tokens: so the two are one where
    they are tied, and a row of the table has the scales of its own blocks.
    """
    if is_product(node) and len(node.inputs) > 1:
        weight = weight_of(node.inputs[1])
        return None if weight is None else Operand(weight, bool(attribute_of(node, "transB", 0)))
    weight = weight_of(node.inputs[0]) if is_lookup(node) else None
    if weight is None or len(weight.shape) != 2 or weight.dtype not in FLOATS or not min(weight.shape):
        return None
    return Operand(weight, flipped=True)
