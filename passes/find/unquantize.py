"""Bring a quantized graph back into the shape that `identify` reads. For inspection only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass, promise
from spq_graph.passes.base.marks import ADDED, PREFIX, is_int8_gather, multiplies
from spq_graph.passes.base.values import codes_looked_up, made_by, scalar_of, users_of, weight_of

_PASSING = frozenset({"Clip", "Reshape", "Sum"})  # what we inserted that a reader sees through


class LookThroughQuantization(CanonicalPass):
    """Take quantizers off the activations and stand-ins in for quantized weights, in memory.

    The result has the structure of the model before it was quantized, and none of its numbers: never run or save it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        for node in list(graph):
            if _adds_a_branch(node):
                _without_branch(graph, node)
        for node in list(graph):
            if node.op_type == "DequantizeLinear":
                _look_through_dequantize(graph, node)
            elif _is_product_of_codes(node):
                _as_matmul(graph, node)
            elif (codes_looked_up(node) or is_int8_gather(node)) and f"{PREFIX}site" in node.metadata_props:
                _as_gather(graph, node)
        for node in list(graph):
            if node.op_type in _PASSING and ADDED in node.metadata_props:
                _bypass(graph, node, node.inputs[0])
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Every product that reads codes itself has become a MatMul."""
        left = (node.name for node in model.graph if _is_product_of_codes(node))
        promise(next((f"{name} reads codes still" for name in left), None))


def _adds_a_branch(node: ir.Node) -> bool:
    """Whether a node is the sum of an integer product and its outlier branch."""
    branch = made_by(node.inputs[1], "MatMul") if node.op_type == "Add" and ADDED in node.metadata_props else None
    return branch is not None and ADDED in branch.metadata_props


def _without_branch(graph: ir.Graph, total: ir.Node) -> None:
    """Take an outlier branch away, as far as no other product reads of it."""
    left = [total.inputs[1]]
    _bypass(graph, total, total.inputs[0])
    while left:
        value = left.pop()
        node = value.producer() if value is not None else None
        if value is None or node is None or node.graph is None or value.uses():
            continue
        if ADDED in node.metadata_props:
            left += node.inputs
            graph.remove(node, safe=True)


def _is_product_of_codes(node: ir.Node) -> bool:
    return node.op_type == "MatMulNBits" or multiplies(node)


def _look_through_dequantize(graph: ir.Graph, node: ir.Node) -> None:
    codes = node.inputs[0]
    if codes is None:
        return
    producer = codes.producer()
    if producer is not None and producer.op_type == "QuantizeLinear":
        _bypass(graph, node, producer.inputs[0])
        if not codes.uses():
            graph.remove(producer, safe=True)
    elif weight_of(codes) is not None:
        cast = ir.node("Cast", [codes], {"to": int(ir.DataType.FLOAT)}, name=node.name)
        graph.insert_before(node, cast)
        _bypass(graph, node, cast.outputs[0])


def _bypass(graph: ir.Graph, node: ir.Node, value: ir.Value | None) -> None:
    if value is None:
        return
    node.outputs[0].replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _as_gather(graph: ir.Graph, node: ir.Node) -> None:
    """A lookup of ours as it was, in place of the last node of those that it became."""
    last = node
    while len(users := list(users_of(last.outputs[0]))) == 1 and users[0].metadata_props.get(ADDED) == node.name:
        last = users[0]
    table = _stand_in(graph, node, ir.Shape(_table_shape(node, last)))
    gather = ir.node("Gather", [table, node.inputs[1]], name=node.name)
    gather.metadata_props.update(node.metadata_props)
    node.name = f"{node.name}.replaced"
    graph.insert_before(last, gather)
    old, new = last.outputs[0], gather.outputs[0]
    new.type, new.shape = old.type, old.shape
    old.name, new.name = f"{old.name}.replaced", old.name  # readers know the value by its name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def _table_shape(node: ir.Node, last: ir.Node) -> tuple[int, int]:
    """Tokens and channels of the table that a lookup reads, of which `last` is the last node."""
    if is_int8_gather(node):
        return int(node.attributes["N"].value), int(node.attributes["K"].value)
    tokens, blocks, block = _constant_shape(node.inputs[0])
    cut = made_by(last.outputs[0], "Slice") or made_by(last.inputs[0], "Slice")  # a Cast may stand behind it
    channels = scalar_of(cut.inputs[2]) if cut is not None and cut.metadata_props.get(ADDED) == node.name else None
    return tokens, int(channels or blocks * block)


def _constant_shape(value: ir.Value | None) -> list[int]:
    assert value is not None
    assert value.const_value is not None
    return [int(size) for size in value.const_value.shape.numpy()]


def _stand_in(graph: ir.Graph, node: ir.Node, shape: ir.Shape) -> ir.Value:
    """A tensor that is never read: only its shape is."""
    stand_in = ir.LazyTensor(
        lambda: ir.Tensor(np.zeros(tuple(shape.numpy()), dtype=np.float32)), dtype=ir.DataType.FLOAT, shape=shape
    )
    weight = ir.Value(
        name=f"{node.name}.stand_in", type=ir.TensorType(ir.DataType.FLOAT), shape=shape, const_value=stand_in
    )
    graph.initializers.add(weight)
    return weight


def _as_matmul(graph: ir.Graph, node: ir.Node) -> None:
    weight = _stand_in(graph, node, ir.Shape([int(node.attributes["K"].value), int(node.attributes["N"].value)]))
    product = ir.node("MatMul", [node.inputs[0], weight], name=node.name)
    product.metadata_props.update(node.metadata_props)
    graph.insert_before(node, product)
    _bypass(graph, node, product.outputs[0])
