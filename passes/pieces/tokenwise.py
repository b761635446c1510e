"""Whether nodes compute every token from that token alone, so that tokens may be run some at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import onnx_ir as ir

from spq_graph.passes.base.marks import is_ours
from spq_graph.passes.base.values import SEEN_THROUGH, attribute_of, axes_of, is_standard
from spq_graph.terms.targets import CONTRIB

_BY_ELEMENT = frozenset(
    {"Abs", "Add", "Cast", "Clip", "Div", "Erf", "Exp", "Gelu", "Identity", "Log", "Max", "Min", "Mul", "Neg", "Not"}
    | {"Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Softplus", "Sqrt", "Sub", "Tanh", "Where"}
)
_NBITS = (CONTRIB, "MatMulNBits")
_SEEN_THROUGH = SEEN_THROUGH | {"DequantizeLinear"}
_UNKNOWN = (2, 2, 2)


def is_tokenwise(nodes: Iterable[ir.Node]) -> bool:
    """Whether nodes, in order, compute row by row along the last axis whatever is no constant.

    What is not known to is said not to: attention, whatever changes shapes, a scale over all tokens.
    """
    constant: set[ir.Value] = set()
    for node in nodes:
        reads = [value for value in node.inputs if value is not None]
        varying = [v for v in reads if v not in constant and v.const_value is None]
        if not varying and all(attribute.type is not ir.AttributeType.GRAPH for attribute in node.attributes.values()):
            constant.update(node.outputs)
        elif any(value.is_graph_input() for value in varying) or not _keeps_rows(node, varying):
            return False
    return True


def _keeps_rows(node: ir.Node, varying: list[ir.Value]) -> bool:
    if not is_standard(node):
        return varying == [node.inputs[0]] and (is_ours(node) or node.op_identifier()[:2] == _NBITS)
    if node.op_type in _BY_ELEMENT:
        return all(_is_of_one_row(value) for value in node.inputs if value is not None and value not in varying)
    if node.op_type == "Concat":
        return len(varying) == len(node.inputs) and attribute_of(node, "axis", 0) == -1
    rule = _OF_FIRST_INPUT.get(node.op_type)
    return rule is not None and varying == [node.inputs[0]] and rule(node)


def _by_weight(node: ir.Node) -> bool:
    return len(_shape(node.inputs[1])) == 2


def _by_scale(node: ir.Node) -> bool:
    scale = _shape(node.inputs[1])
    return math.prod(scale) == 1 or (len(scale) == 1 and attribute_of(node, "axis", 1) == -1)


def _by_row(node: ir.Node) -> bool:
    return attribute_of(node, "axis", -1) == -1


def _reduces_rows(node: ir.Node) -> bool:
    return axes_of(node) == [-1] and attribute_of(node, "keepdims", 1) == 1


# By operator that computes on its first input, when it does so row by row, where all others are constants.
_OF_FIRST_INPUT: dict[str, Callable[[ir.Node], bool]] = {
    **dict.fromkeys(("MatMul", "MatMulInteger"), _by_weight),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _by_scale),
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization"), _by_row
    ),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceSumSquare"), _reduces_rows),
}


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    """Of a constant operand, as it is stored; of more dimensions than any that is accepted where that is not known."""
    while value is not None and (node := value.producer()) is not None:
        value = node.inputs[0] if node.op_type in _SEEN_THROUGH and is_standard(node) else None
    tensor = value.const_value if value is not None else None
    return tuple(int(size) for size in tensor.shape.numpy()) if tensor is not None else _UNKNOWN


def _is_of_one_row(value: ir.Value) -> bool:
    """Whether a constant is the same for all tokens."""
    return math.prod(_shape(value)[:-1]) == 1
