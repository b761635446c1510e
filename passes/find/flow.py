"""Which numbers of a graph follow from its weights, and where a very large one among them does harm.

A mask is made of -inf or of the lowest number there is, the cube in a tanh Gelu may pass what float16 holds, and both
mean what they should: behind a Softmax or a Tanh nothing of it is left. A hidden state or a score that is too large is
lost.
"""

from __future__ import annotations

from enum import IntEnum

import onnx_ir as ir

from spq_graph.passes.base.values import is_product, is_standard, weight_of

_SATURATING = frozenset({"Tanh", "Sigmoid", "HardSigmoid", "Erf", "Clip"})
_PASSED_ON = frozenset(
    {"Add", "Sub", "Mul", "Div", "Sum", "Pow", "Min", "Max", "Where", "Cast", "Identity", "Dropout", "Expand"}
    | {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice"}
)
_LOOKUPS = frozenset({"Gather", "GatherND"})
_SUMS = frozenset({"Add", "Sub", "Mul"})
# What gives another type than it reads.
_OTHER_TYPE = frozenset(
    {"Shape", "Size", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "IsNaN", "IsInf", "ArgMax", "ArgMin"}
    | {"QuantizeLinear", "DequantizeLinear", "NonZero"}
)
_OTHERS = frozenset({"Sum", "Einsum", "Gelu", "Swish", "Conv"})
# What a norm divides by, or what leads to it: runtimes compute norms as one operator, in float32.
_OF_NORMS = frozenset({"Div", "Reciprocal", "Sqrt", "ReduceMean", "Pow"})


class Harm(IntEnum):
    """Which numbers that are too large do harm in a value."""

    NONE = 0
    POSITIVE = 1
    ANY = 2


def harms(graph: ir.Graph) -> dict[ir.Value, Harm]:
    """What too large a number does, of every value that follows from the graph's weights, in their order."""
    found: dict[ir.Value, Harm] = {}
    for node in reversed(graph):
        for value in node.outputs:
            found[value] = _harm_of(value, graph, found)
    carried: set[ir.Value] = set()
    for node in graph:
        if _begins(node) or any(value in carried for value in node.inputs if value is not None):
            carried.update(node.outputs)
    return {value: found[value] for node in graph for value in node.outputs if value in carried}


def _harm_of(value: ir.Value, graph: ir.Graph, known: dict[ir.Value, Harm]) -> Harm:
    worst = Harm.ANY if value.is_graph_output() else Harm.NONE
    for use in value.uses():
        node = use.node
        if node.graph is not graph or not is_standard(node):
            return Harm.ANY
        if node.op_type == "Softmax":
            worst = max(worst, Harm.POSITIVE)
        elif node.op_type in _PASSED_ON:
            worst = max(worst, known[node.outputs[0]])
        elif node.op_type not in _SATURATING:
            return Harm.ANY
    return worst


def _begins(node: ir.Node) -> bool:
    """Whether a node brings numbers of a weight into play: a product, a lookup, an operator of a runtime's own."""
    if not is_standard(node):
        return True
    if node.op_type in _LOOKUPS:
        return weight_of(node.inputs[0]) is not None
    return is_product(node) and any(weight_of(value) is not None for value in node.inputs[:2])


def held_in_half(graph: ir.Graph) -> dict[ir.Value, Harm]:
    """The float16 values that may pass what float16 holds while a runtime that computes in float32 does not show it.

    Products, sums and products of two activations, and what operators of a runtime's own give. What only moves numbers,
    scales them by a constant or belongs to a norm is left out, so that what a runtime computes as one operator stays
    one.
    """
    known, half = harms(graph), in_half(graph)
    return {
        value: harm
        for value, harm in known.items()
        if harm and value in half and (node := value.producer()) and _may_grow(node, known)
    }


def in_half(graph: ir.Graph) -> set[ir.Value]:
    """What nodes give in float16; where the graph does not say the type of a value, it follows from what is read."""
    types: dict[ir.Value, ir.DataType | None] = {}
    for node in graph:
        reads = [value for value in node.inputs if value is not None]
        known = [v.dtype or (v.const_value.dtype if v.const_value is not None else types.get(v)) for v in reads]
        made = next((t for t in known[node.op_type == "Where" :] if t is not None), None)
        if node.op_type == "Cast":
            made = ir.DataType(node.attributes["to"].as_int())
        for value in node.outputs:
            types[value] = value.dtype or (None if node.op_type in _OTHER_TYPE else made)
    return {value for value, dtype in types.items() if dtype is ir.DataType.FLOAT16}


def _may_grow(node: ir.Node, known: dict[ir.Value, Harm]) -> bool:
    if not is_standard(node) or is_product(node) or node.op_type in _OTHERS:
        return True
    if node.op_type not in _SUMS or node.inputs[0] is node.inputs[1]:
        return False
    makers = [value.producer() if value is not None and value in known else None for value in node.inputs]
    return all(maker is not None and maker.op_type not in _OF_NORMS for maker in makers)
