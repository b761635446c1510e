"""Writing the body of a model-local function: nodes one after another, each named by what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.numbers.int8 import COLUMNS, DEPTH, FOUR


class Body:
    """The nodes of a function over a weight in panels, whose true size its attributes K and N say.

    Args:
        inputs: their names.
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self.inputs = {name: ir.Value(name=name) for name in inputs}
        self.nodes: list[ir.Node] = []

    def op(self, output: str, op_type: str, *operands: ir.Value, **attributes: Any) -> ir.Value:
        """What a new node gives."""
        node = ir.node(op_type, operands, attributes, outputs=[ir.Value(name=output)], name=output)
        self.nodes.append(node)
        return node.outputs[0]

    def integers(self, name: str, *values: int) -> ir.Value:
        """Constants, int64 [n]."""
        return self.op(name, "Constant", value_ints=values)

    def number(self, name: str, value: float) -> ir.Value:
        """A constant, float32 []."""
        return self.op(name, "Constant", value_float=value)

    def size(self, name: str) -> ir.Value:
        """An attribute of the call, int64 [1]."""
        return self._known(f"{name}_end") or self.op(f"{name}_end", "Reshape", self.scalar(name), self.one)

    def scalar(self, name: str) -> ir.Value:
        """The same, int64 []."""
        value = ir.RefAttr("value_int", name, ir.AttributeType.INT)
        return self._known(f"{name}_value") or self.op(f"{name}_value", "Constant", value_int=value)

    @property
    def one(self) -> ir.Value:
        """1, int64 [1]."""
        return self._known("one") or self.integers("one", 1)

    def _known(self, name: str) -> ir.Value | None:
        return next((node.outputs[0] for node in self.nodes if node.name == name), None)

    def weight(self, *, flipped: bool = False) -> ir.Value:
        """The codes in B, int8 [K, N]; flipped, [N, K]."""
        split = self.op(
            "B_split", "Reshape", self.inputs["B"], self.integers("B_axes", 0, 0, DEPTH // FOUR, COLUMNS, FOUR)
        )
        perm, sizes = ([0, 3, 1, 2, 4], ("N", "K")) if flipped else ([1, 2, 4, 0, 3], ("K", "N"))
        rows = self.op("B_rows", "Transpose", split, perm=perm)
        padded = self.op("B_padded", "Flatten", rows, axis=2 if flipped else 3)
        ends = self.op("B_ends", "Concat", *map(self.size, sizes), axis=0)
        return self.op("W", "Slice", padded, self.integers("B_starts", 0, 0), ends)

    def function(self, name: str, result: ir.Value, opset: int) -> ir.Function:
        """All of it, as a function of this name that gives `result`."""
        graph = ir.Graph(list(self.inputs.values()), [result], nodes=self.nodes, opset_imports={"": opset}, name=name)
        attributes = [ir.Attr(size, ir.AttributeType.INT, None) for size in ("K", "N")]
        return ir.Function(DOMAIN, name, graph=graph, attributes=attributes)
