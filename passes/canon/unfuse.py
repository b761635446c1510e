"""Write out what ONNX Runtime's optimizer fused around weights, so that every pass meets one form of a product.

What it fused comes back when the result is loaded: nothing of speed is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass
from spq_graph.passes.base.replace import add_constant, named_like, replace_by
from spq_graph.passes.base.values import is_standard, weight_of
from spq_graph.terms.targets import CONTRIB

# Activations of FusedGemm that take no numbers.
_PLAIN_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh"})


class Unfuse(CanonicalPass):
    """Replace fused operators of com.microsoft that hold a weight or a bias by ONNX's own; other nodes stay.

    A FusedMatMul becomes a MatMul behind a Transpose of its weight and in front of its factor, a FusedGemm a Gemm and
    its activation, a bias inside of a Gelu an Add, and a sum of two an Add. The first node keeps name and metadata.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            write = (_STANDARD if is_standard(node) else _CONTRIB if node.domain == CONTRIB else {}).get(node.op_type)
            modified |= write is not None and write(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _fused_matmul(graph: ir.Graph, node: ir.Node) -> bool:
    numbers = {name: attribute.value for name, attribute in node.attributes.items()}
    odd = any(numbers.get(name) for name in ("transA", "transBatchA", "transBatchB"))
    weight = weight_of(node.inputs[1]) if len(node.inputs) == 2 else None
    if odd or weight is None or len(weight.shape) != 2:
        return False
    nodes: list[ir.Node] = []
    operand = node.inputs[1]
    if numbers.get("transB"):
        nodes.append(ir.node("Transpose", [operand], {"perm": [1, 0]}))
        operand = nodes[-1].outputs[0]
    product = named_like(ir.node("MatMul", [node.inputs[0], operand]), node)
    nodes.append(product)
    if (alpha := numbers.get("alpha", 1.0)) != 1.0:
        number = ir.Tensor(np.array(alpha, dtype=weight.dtype.numpy()))
        factor = add_constant(graph, f"{node.outputs[0].name}.alpha", number)
        nodes.append(ir.node("Mul", [product.outputs[0], factor]))
    return replace_by(graph, node, nodes)


def _fused_gemm(graph: ir.Graph, node: ir.Node) -> bool:
    activation = node.attributes.get("activation")
    if activation is None or activation.as_string() not in _PLAIN_ACTIVATIONS:
        return False
    kept = {name: a for name, a in node.attributes.items() if not name.startswith("activation")}
    product = named_like(ir.Node("", "Gemm", node.inputs, kept.values()), node)
    return replace_by(graph, node, [product, ir.node(activation.as_string(), [product.outputs[0]])])


def _bias_inside(graph: ir.Graph, node: ir.Node) -> bool:
    value, bias = (*node.inputs, None)[:2]
    if bias is None:
        return False
    total = named_like(ir.node("Add", [value, bias]), node)
    op_type = "FastGelu" if node.op_type == "FastGelu" else "Gelu"
    return replace_by(graph, node, [total, ir.node(op_type, [total.outputs[0]], domain=CONTRIB)])


def _sum_of_two(graph: ir.Graph, node: ir.Node) -> bool:
    """The bodies of ONNX's functions write sums so, and they are inlined where a provider has no kernel."""
    return len(node.inputs) == 2 and replace_by(graph, node, [named_like(ir.node("Add", node.inputs), node)])


_Write = Callable[[ir.Graph, ir.Node], bool]
_STANDARD: Mapping[str, _Write] = {"Sum": _sum_of_two}
_CONTRIB: Mapping[str, _Write] = {
    "FusedMatMul": _fused_matmul,
    "FusedGemm": _fused_gemm,
    "BiasGelu": _bias_inside,
    "FastGelu": _bias_inside,
}
