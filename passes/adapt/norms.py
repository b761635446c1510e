"""Write root-mean-square norms in the form that ONNX Runtime fuses into one operator."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass, promise
from spq_graph.passes.base.replace import replace_by
from spq_graph.passes.base.values import attribute_of, axes_of, is_standard, made_by, scalar_of, weight_of


class DivideNorms(CanonicalPass):
    """Replace x * (1 / sqrt(m)) by x / sqrt(m), where m is the mean of the squares of x plus a constant.

    torch exports the reciprocal root of RMSNorm (Zhang and Sennrich, arXiv 1910.07467, equation 4) as a Sqrt and a
    Reciprocal. ONNX Runtime knows the quotient alone, and makes one SimplifiedLayerNormalization of what otherwise runs
    as seven nodes. The quotient is rounded once instead of twice. Where anything else reads a step, all of them stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            operands = _of_norm(node)
            if operands is not None:
                _divide(model.graph, node, *operands)
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """No norm multiplies by a reciprocal."""
        left = (node.name for node in model.graph if _of_norm(node) is not None)
        promise(next((f"{name} multiplies by the reciprocal of a root" for name in left), None))


def _of_norm(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """What a product divides, and by which root, if it is that of a norm."""
    if node.op_type != "Mul" or not is_standard(node):
        return None
    for x, factor in (node.inputs, node.inputs[::-1]):
        root = _reciprocal_of(factor)
        if root is not None and _is_mean_square(_made_by(root, "Sqrt"), x):
            assert x is not None
            return x, root
    return None


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The operator that makes a value which nothing else reads; None where it is another, or has other readers."""
    if value is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    return made_by(value, op_type)


def _reciprocal_of(value: ir.Value | None) -> ir.Value | None:
    node = _made_by(value, "Reciprocal")
    return node.inputs[0] if node is not None else None


def _is_mean_square(root: ir.Node | None, x: ir.Value | None) -> bool:
    """Whether a Sqrt takes the mean of the squares of x and a constant."""
    total = _made_by(root.inputs[0], "Add") if root is not None else None
    averaged = _made_by(total.inputs[0], "ReduceMean") if total is not None else None
    square = _made_by(averaged.inputs[0], "Pow") if averaged is not None else None
    if total is None or averaged is None or square is None or not _is_by_row(averaged, x):
        return False
    if square.inputs[0] is not x or scalar_of(square.inputs[1]) != 2:
        return False
    # ONNX Runtime reads the constant on the right, in float32; any other it takes for its own default.
    epsilon = weight_of(total.inputs[1])
    return epsilon is not None and epsilon.shape in ((), (1,)) and epsilon.dtype is ir.DataType.FLOAT


def _is_by_row(averaged: ir.Node, x: ir.Value | None) -> bool:
    """Whether a mean is over the last axis, which stays with size 1: the fusion asks for neither."""
    axes = axes_of(averaged)
    last = {-1} if x is None or x.shape is None else {-1, len(x.shape) - 1}
    return len(axes) == 1 and axes[0] in last and attribute_of(averaged, "keepdims", 1) == 1


def _divide(graph: ir.Graph, node: ir.Node, x: ir.Value, root: ir.Value) -> None:
    """Put a Div with the name, metadata and output of a Mul in its place, and drop the reciprocal."""
    (reciprocal,) = (use.node for use in root.uses())  # before the quotient reads it too
    replace_by(graph, node, [ir.node("Div", [x, root], name=node.name, metadata_props=node.metadata_props)])
    graph.remove(reciprocal, safe=True)
