"""Walks along the branches of a GLU: from its operands back to projections, and between its product and down."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import onnx_ir as ir

from spq_graph.passes.base.values import is_product, weight_of
from spq_graph.passes.find.patterns import follows_from

# Between a GLU's product and its down projection, and between a projection and the GLU.
TO_DOWN = frozenset({"Cast", "Identity", "Reshape", "Dropout", "Mul", "Div", "Clip", "Squeeze", "Unsqueeze"})
# What only moves data.
MOVES = frozenset({"Cast", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Dropout"})
_FROM_PROJECTION = frozenset(
    {
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Cast",
        "Identity",
        "Split",
        "Slice",
        "Gather",
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Dropout",
        "Clip",
        "Min",
        "Max",
    }
)
_SAME_TOKENS = frozenset({"Cast", "Identity", "Reshape", "Dropout", "Mul", "Div"})
_BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Min", "Max"})
_MOST_ADAPTERS = 4  # operators between an adapter's sum and what it adds to, other adapters' sums and a bias among them
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


def passed_on(node: ir.Node) -> ir.Value | None:
    """What a node between a GLU's product and its down projection passes on, a norm included; None for any other."""
    if node.op_type in _NORMS:
        return node.inputs[0]
    if node.op_type not in TO_DOWN:
        return None
    return only_dynamic(node) or _normalized(node)


def _normalized(node: ir.Node) -> ir.Value | None:
    """What the product or quotient of a norm that is written out normalizes: x times or over a root made of x."""
    root_of = {"Mul": "Reciprocal", "Div": "Sqrt"}.get(node.op_type)
    for x, root in (node.inputs, node.inputs[::-1]) if node.op_type == "Mul" else (node.inputs,):
        maker = root.producer() if root is not None and root_of else None
        if maker is not None and maker.op_type == root_of and x is not None and follows_from(maker.outputs[0], x):
            return x
    return None


def only_dynamic(node: ir.Node) -> ir.Value | None:
    """The operand that a node passes on: the first, or the one that is no constant where the order does not matter."""
    if node.op_type not in _BINARY:
        return node.inputs[0]
    dynamic = [v for v in node.inputs if v is not None and weight_of(v) is None]
    return dynamic[0] if len(dynamic) == 1 else None


def scaled_from(value: ir.Value | None) -> ir.Value | None:
    """What a value was before it was scaled, cast and reshaped."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _SAME_TOKENS:
        before = only_dynamic(node)
        if before is None:
            break
        value = before
    return value


def projection(value: ir.Value | None, nodes: Container[ir.Node], depth: int = 12) -> ir.Node | None:
    """The site that a GLU branch comes from, through bias, split, clip and moves of data."""
    while value is not None and depth:
        node = value.producer()
        if node is None or node in nodes:
            return node
        if node.op_type not in _FROM_PROJECTION:
            return None
        value = only_dynamic(node)  # of a bias or a scale, the other operand
        if value is None and (adapter := adapter_at(node, nodes, depth - 1)) is not None:
            value = adapter.beside
        depth -= 1
    return None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter that was not merged: s (x A) B, added to x W (LoRA, Hu et al., arXiv 2106.09685, equation 3).

    Attributes:
        beside: x W.
        products: the two of the adapter. They are sites where their weights are constants, and none where those are
            inputs of the graph, as with adapters that are exchanged.
    """

    beside: ir.Value
    products: tuple[ir.Node, ir.Node]


def adapter_at(node: ir.Node, nodes: Container[ir.Node], depth: int = _MOST_ADAPTERS) -> Adapter | None:
    """The adapter that a sum adds to a projection, if that is what it does."""
    if node.op_type != "Add" or not depth:
        return None
    for whole, term in (node.inputs, node.inputs[::-1]):
        up = _product(term)
        down = _product(up.inputs[0]) if up is not None else None
        base = projection(whole, nodes, min(depth, _MOST_ADAPTERS)) if down is not None else None
        if up is None or down is None or base is None or whole is None or base in (up, down):
            continue
        if scaled_from(down.inputs[0]) is scaled_from(base.inputs[0]):
            return Adapter(whole, (down, up))
    return None


def _product(value: ir.Value | None) -> ir.Node | None:
    """The product that a value is a multiple of."""
    source = scaled_from(value)
    node = source.producer() if source is not None else None
    return node if node is not None and is_product(node) else None


def find_adapters(graph: ir.Graph, nodes: Container[ir.Node]) -> set[ir.Node]:
    """The products of every adapter."""
    found = (adapter_at(node, nodes) for node in graph)
    return {product for adapter in found if adapter is not None for product in adapter.products}
