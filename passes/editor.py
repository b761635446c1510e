"""Editing helpers that the inserting passes share: add nodes with a mark, split Gemm, widen half precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.errors import GraphError
from spq_graph.passes.graph import Weight, weight_of
from spq_graph.plan import SitePlan

ADDED = "spq_graph.added"  # node metadata: this node was inserted, for the node named


@dataclass(frozen=True, slots=True)
class Operand:
    """The constant operand of a site: the initializer, and how it lies."""

    weight: Weight
    flipped: bool

    @property
    def dtype(self) -> ir.DataType:
        """Element type of the initializer."""
        return self.weight.initializer.dtype or ir.DataType.FLOAT

    def numpy(self) -> npt.NDArray[np.float32]:
        """The weight as the product sees it, float32 [K, N]; read anew each time, so that it need not stay in memory."""
        array = self.weight.numpy()
        return array.T if self.flipped else array


@dataclass(slots=True)
class Editor:
    """One graph under edit."""

    model: ir.Model
    nodes: dict[str, ir.Node] = field(default_factory=dict)
    shared: dict[str, ir.Value] = field(default_factory=dict)  # inserted values that several sites read, by name

    def __post_init__(self) -> None:
        self.nodes = {node.name or "": node for node in self.model.graph}

    def find(self, site: SitePlan) -> tuple[ir.Node, Operand]:
        """The node and the weight of a site.

        Raises:
            GraphError: the graph does not hold this site.
        """
        node = self.nodes.get(site.node)
        weight = weight_of(node.inputs[1]) if node is not None and len(node.inputs) > 1 else None
        if node is None or weight is None or node.op_type not in ("MatMul", "Gemm"):
            raise GraphError(
                "this site of the plan is not in the graph",
                where=f"{site.key} (node {site.node})",
                remedy="apply the plan to the model that it was made for",
            )
        flipped = node.op_type == "Gemm" and "transB" in node.attributes and bool(node.attributes["transB"].value)
        return node, Operand(weight, flipped)

    def add(
        self, before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], name: str, dtype: ir.DataType,
        *, domain: str = "", like: ir.Value | None = None, **attributes: Any,
    ) -> ir.Value:  # fmt: skip
        """Insert a node with one output in front of another."""
        node = ir.node(op_type, inputs, attributes, domain=domain, name=name)
        node.metadata_props[ADDED] = before.name or ""
        node.outputs[0].name = f"{name}.out"
        node.outputs[0].dtype = dtype
        if like is not None:
            node.outputs[0].shape = like.shape
        self.model.graph.insert_before(before, node)
        return node.outputs[0]

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Add an initializer, or return the one that is there already."""
        initializers = self.model.graph.initializers
        if name not in initializers:
            shape = ir.Shape(tensor.shape)
            initializers.add(ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor))
        return initializers[name]

    def as_matmul(self, node: ir.Node) -> ir.Node:
        """Turn Gemm into MatMul, which keeps the name, and Add: with a float bias it would never fuse.

        The second operand is left as it was, also where the Gemm transposed it: the caller replaces it.
        """
        if node.op_type != "Gemm":
            return node
        graph, name, output = self.model.graph, node.name or "", node.outputs[0]
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        product = ir.node("MatMul", [node.inputs[0], node.inputs[1]], name=name)
        product.metadata_props.update(node.metadata_props)
        product.outputs[0].dtype, product.outputs[0].shape = output.dtype, output.shape
        graph.insert_before(node, product)
        node.name = f"{name}.replaced"
        result = product.outputs[0]
        if bias is not None:
            total = ir.node("Add", [result, bias], name=f"{name}.bias")
            total.metadata_props[ADDED] = name
            graph.insert_before(node, total)
            result = total.outputs[0]
            result.dtype, result.shape = output.dtype, output.shape
        self.take_over(output, result)
        graph.remove(node, safe=True)
        self.nodes[name] = product
        return product

    def widen(self, node: ir.Node, original: ir.DataType) -> None:
        """Compute a product in float32 where the graph is in half precision.

        ONNX Runtime's CPU provider fuses QDQ in float32 only.
        """
        value = node.inputs[0]
        if original is ir.DataType.FLOAT or value is None:
            return
        name = f"{value.name}.widened"
        if name not in self.shared:
            self.shared[name] = self.add(node, "Cast", [value], name, ir.DataType.FLOAT, like=value, to=int(ir.DataType.FLOAT))
        node.replace_input_with(0, self.shared[name])
        output = node.outputs[0]
        cast = ir.node("Cast", [output], {"to": int(original)}, name=f"{node.name}.narrowed")
        cast.metadata_props[ADDED] = node.name or ""
        self.model.graph.insert_after(node, cast)
        cast.outputs[0].dtype, cast.outputs[0].shape = original, output.shape
        self.take_over(output, cast.outputs[0])
        cast.replace_input_with(0, output)
        output.dtype = ir.DataType.FLOAT

    @staticmethod
    def take_over(old: ir.Value, new: ir.Value) -> None:
        """Let `new` stand where `old` stood, under its name."""
        name = old.name
        old.name, new.name = f"{name}.inner", name
        old.replace_all_uses_with(new, replace_graph_outputs=True)


def drop_unused(model: ir.Model, candidates: Sequence[ir.Value]) -> None:
    """Remove constants that an edit left without a reader, and the nodes between them and their former reader."""
    graph = model.graph
    pending = list(candidates)
    while pending:
        value = pending.pop()
        if value.uses() or value.is_graph_output():
            continue
        node = value.producer()
        if node is not None:
            pending += [operand for operand in node.inputs if operand is not None]
            graph.remove(node, safe=True)
        elif value.name in graph.initializers:
            graph.initializers.pop(value.name)
