"""Write a linear layer that an exporter left as an Einsum as the MatMul that it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass
from spq_graph.passes.base.replace import add_constant, named_like, replace_by
from spq_graph.passes.base.values import Weight, is_standard, weight_of

_REST = "."  # stands for the ellipsis, which is one label of unknown rank


class EinsumAsMatMul(CanonicalPass):
    """Replace an Einsum of activations and one constant by a MatMul, where it is one but for axes taken together.

    "bsk,kn->bsn" and "...k,nk->...n" are linear layers; so are, between Reshapes, "bsd,dnh->bsnh" and "bsnh,nhd->bsd",
    the projections of an attention that keeps heads apart. The MatMul has name and metadata; the weight is not read.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type == "Einsum" and is_standard(node) and len(node.inputs) == 2:
                modified |= _write(model.graph, node)
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True, slots=True)
class _Linear:
    """A linear layer in the labels of an equation.

    Attributes:
        kept: of the activation, which come first in it and in the result.
        summed: of the activation behind them, which the weight has too.
        made: of the result behind them, which only the weight has.
        weight: of the weight.
    """

    kept: str
    summed: str
    made: str
    weight: str


def _linear(of_activation: str, of_weight: str, of_result: str) -> _Linear | None:
    """What an equation says, where it is a linear layer."""
    if any(count > 1 for term in (of_activation, of_weight, of_result) for count in Counter(term).values()):
        return None
    summed = "".join(label for label in of_activation if label in of_weight)
    made = "".join(label for label in of_result if label in of_weight)
    kept = of_activation.removesuffix(summed)
    whole = of_activation == kept + summed and of_result == kept + made and sorted(of_weight) == sorted(summed + made)
    return _Linear(kept, summed, made, of_weight) if summed and made and whole and _REST not in of_weight else None


def _write(graph: ir.Graph, node: ir.Node) -> bool:
    equation = node.attributes["equation"].as_string().replace(" ", "").replace("...", _REST)
    terms, arrow, result = equation.partition("->")
    one, comma, other = terms.partition(",")
    if not arrow or not comma:
        return False
    for place, labels in ((1, (one, other)), (0, (other, one))):
        x, operand = node.inputs[1 - place], node.inputs[place]
        weight = weight_of(operand)
        linear = _linear(*labels, result)
        if x is None or operand is None or weight is None or linear is None or weight_of(x) is not None:
            continue
        if len(weight.shape) == len(linear.weight) and (kept := _count_of(linear, x)) is not None:
            return _replace(graph, node, x, operand, weight, linear, kept)
    return False


def _count_of(linear: _Linear, x: ir.Value) -> int | None:
    """How many axes are kept; None where that is to be known and is not."""
    if _REST not in linear.kept:
        return len(linear.kept)
    if len(linear.summed) == len(linear.made) == 1:
        return 0  # it takes no Reshape, so that nobody asks
    return None if x.shape is None else len(x.shape) - len(linear.summed)


def _replace(
    graph: ir.Graph, node: ir.Node, x: ir.Value, operand: ir.Value, weight: Weight, linear: _Linear, kept: int
) -> bool:
    sizes = dict(zip(linear.weight, weight.shape, strict=True))
    order = [linear.weight.index(label) for label in linear.summed + linear.made]
    made = [sizes[label] for label in linear.made]
    rows, columns = (int(np.prod([sizes[label] for label in labels])) for labels in (linear.summed, linear.made))
    nodes: list[ir.Node] = []

    def then(step: ir.Node, like: ir.Value) -> ir.Value:
        step.outputs[0].type = like.type
        nodes.append(step)
        return step.outputs[0]

    def shaped(value: ir.Value, *sizes: int) -> ir.Value:
        name = f"{node.outputs[0].name}.{'_'.join(map(str, sizes))}"
        target = add_constant(graph, name, ir.Tensor(np.array(sizes, dtype=np.int64)))
        return then(ir.node("Reshape", [value, target]), value)

    if order != sorted(order):
        operand = then(ir.node("Transpose", [operand], {"perm": order}), operand)
    if len(order) > 2:
        operand = shaped(operand, rows, columns)
    if len(linear.summed) > 1:
        x = shaped(x, *[0] * kept, rows)
    product = ir.node("MatMul", [x, operand])
    nodes.append(named_like(product, node))
    if len(made) > 1:
        product.outputs[0].shape = None  # not that of the whole
        shaped(product.outputs[0], *[0] * kept, *made)
    return replace_by(graph, node, nodes)
