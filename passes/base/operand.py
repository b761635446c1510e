"""The weight of a site as its product sees it, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.passes.base.values import Weight
from spq_graph.passes.numbers.scales import absmax_of

BLOCK_BYTES = 4 << 20
BLOCK_ROWS = 128


@dataclass(frozen=True, slots=True)
class Operand:
    """The constant operand of a site: the initializer, and how it lies."""

    weight: Weight
    flipped: bool

    @property
    def dtype(self) -> ir.DataType:
        """Element type that the product computes in."""
        return self.weight.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """K and N."""
        return self.weight.shape[::-1] if self.flipped else self.weight.shape

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """The weight as the product sees it, [K, N], by some rows at a time as float32: memory never holds it all.

        Blocks start at multiples of 128 rows.
        """
        stored = self.weight.stored()
        if self.flipped:
            stored = stored.T
        rows, columns = stored.shape
        step = max(1, BLOCK_BYTES // (4 * columns * BLOCK_ROWS)) * BLOCK_ROWS
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows)), self.weight.cast(stored[start : start + step])

    def absmax(self) -> npt.NDArray[np.float32]:
        """Largest absolute value by column, float32 [N]."""
        return absmax_of(block for _, block in self.blocks())
