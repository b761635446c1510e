"""One node in the place of another, and constants that are new."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def replace_by(graph: ir.Graph, node: ir.Node, nodes: Sequence[ir.Node]) -> bool:
    """Put nodes in the place of one; the last of them returns what it returned."""
    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.type, new.shape = old.type, old.shape
    name = old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.insert_before(node, nodes)
    graph.remove(node, safe=True)
    new.name = name
    return True


def add_constant(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """A new initializer, by this name or one like it that no other has."""
    while name in graph.initializers:
        name += "_"
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    graph.initializers.add(value)
    return value


def named_like(node: ir.Node, like: ir.Node) -> ir.Node:
    """A node with the name and metadata of another, and an output of the same type and shape; returns it."""
    node.name = like.name
    node.metadata_props.update(like.metadata_props)
    node.outputs[0].type = None if like.outputs[0].dtype is None else ir.TensorType(like.outputs[0].dtype)
    node.outputs[0].shape = like.outputs[0].shape
    return node
