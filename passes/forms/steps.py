"""The nodes that forms are made of, and how those in a file differ from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx_ir as ir


class Step(NamedTuple):
    """A node of a form: its operator, how many values it reads, its attributes, and its domain."""

    op_type: str
    reads: int
    attributes: Mapping[str, Any] = {}
    domain: str = ""

    def differs(self, node: ir.Node) -> str | None:
        """How a node differs from this, in words; None where it does not."""
        if (node.domain, node.op_type, node.overload) != (self.domain, self.op_type, ""):
            return f"{node.name}, a {node.op_type}, where its form has a {self.op_type}"
        if stated(node) != stated(ir.node(self.op_type, [], self.attributes)):
            return f"{node.name} with other attributes than its form has: {attributes_of(node)}"
        if len(node.inputs) != self.reads or None in node.inputs:
            return f"{node.name} with {len(node.inputs)} inputs, where its form has {self.reads}"
        return None


MATMUL = Step("MatMul", 2)
QUANTIZE = Step("QuantizeLinear", 3)


def dequantize(reads: int = 3, **attributes: int) -> Step:
    """A DequantizeLinear, with a zero point where it reads three values."""
    return Step("DequantizeLinear", reads, attributes)


def cast_to(dtype: ir.DataType) -> Step:
    """A Cast."""
    return Step("Cast", 1, {"to": int(dtype)})


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """What a node's attributes hold."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def stated(node: ir.Node) -> dict[str, tuple[ir.AttributeType, Any]]:
    """The same with their types: a 1 is not a 1.0."""
    return {name: (attribute.type, attribute.value) for name, attribute in node.attributes.items()}
