"""Editing helpers that the inserting passes share: add nodes with a mark, split Gemm, widen half precision."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from spq_graph.documents.plan import SitePlan
from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.base.operand import Operand, operand_of
from spq_graph.passes.base.stock import Stock
from spq_graph.passes.base.values import is_lookup, names_in
from spq_graph.terms.errors import GraphError


@dataclass(slots=True)
class Editor:
    """One graph under edit.

    Attributes:
        model: what is edited.
        nodes: nodes by name.
        shared: inserted values that several sites read, by what they are.
        stock: how weights are stored, each once; several graphs may share it.
        stored: constants that stand for a weight, by how it is stored, and those that belong to them.
        taken: every name in use, so that no inserted one collides with the graph's own.
    """

    model: ir.Model
    nodes: dict[str, ir.Node] = field(init=False)
    shared: dict[str, ir.Value] = field(default_factory=dict)
    stock: Stock = field(default_factory=Stock)
    stored: dict[Hashable, ir.Value] = field(default_factory=dict)
    taken: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = {node.name or "": node for node in self.model.graph}
        self.taken = names_in(self.model)

    def fresh(self, name: str) -> str:
        """The name, or the first of its numbered variants that nothing in the graph has."""
        unique, copies = name, 0
        while unique in self.taken:
            copies += 1
            unique = f"{name}_{copies}"
        self.taken.add(unique)
        return unique

    def find(self, site: SitePlan) -> tuple[ir.Node, Operand]:
        """The node and the weight of a site.

        Raises:
            GraphError: the graph does not hold this site.
        """
        node = self.nodes.get(site.node)
        operand = operand_of(node) if node is not None else None
        shape = operand.shape if operand is not None else ()
        if node is None or operand is None or (shape[::-1] if is_lookup(node) else shape) != site.shape:
            raise GraphError(
                "this site of the plan is not in the graph",
                where=f"{site.key} (node {site.node})",
                remedy="apply the plan to the model that it was made for",
            )
        return node, operand

    def add(
        self,
        before: ir.Node,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        name: str,
        dtype: ir.DataType,
        *,
        domain: str = "",
        like: ir.Value | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """Insert a node with one output in front of another."""
        told = {key: _attribute(key, value) for key, value in attributes.items()}
        node = ir.node(op_type, inputs, told, domain=domain, name=self.fresh(name))
        node.metadata_props[ADDED] = before.name or ""
        node.outputs[0].name = self.fresh(f"{name}.out")
        node.outputs[0].dtype = dtype
        if like is not None:
            node.outputs[0].shape = like.shape
        self.model.graph.insert_before(before, node)
        return node.outputs[0]

    def constant(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        """Add an initializer."""
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=self.fresh(name), type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
        self.model.graph.initializers.add(value)
        return value

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
        describe_like(product.outputs[0], output)
        graph.insert_before(node, product)
        node.name = f"{name}.replaced"
        result: ir.Value = product.outputs[0]
        if bias is not None:
            total = ir.node("Add", [result, bias], name=self.fresh(f"{name}.bias"))
            total.metadata_props[ADDED] = name
            graph.insert_before(node, total)
            result = total.outputs[0]
            describe_like(result, output)
        self.take_over(output, result)
        graph.remove(node, safe=True)
        self.nodes[name] = product
        return product

    def substitute(
        self, node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], domain: str, attributes: dict[str, Any]
    ) -> None:
        """Put another operator in a product's place; it takes over the product's name, metadata and output."""
        graph, name, output = self.model.graph, node.name or "", node.outputs[0]
        product = ir.node(op_type, inputs, attributes, domain=domain, name=name)
        product.metadata_props.update(node.metadata_props)
        graph.insert_before(node, product)
        node.name = f"{name}.replaced"
        describe_like(product.outputs[0], output)
        self.take_over(output, product.outputs[0])
        graph.remove(node, safe=True)
        self.nodes[name] = product

    def widen(self, node: ir.Node, original: ir.DataType) -> None:
        """Compute a product in float32 where the graph is in half precision.

        ONNX Runtime's CPU provider fuses QDQ in float32 only.
        """
        value = node.inputs[0]
        if original is ir.DataType.FLOAT or value is None:
            return
        name, to = f"{value.name}.widened", ir.DataType.FLOAT
        if name not in self.shared:
            self.shared[name] = self.add(node, "Cast", [value], name, to, like=value, to=int(to))
        node.replace_input_with(0, self.shared[name])
        self.narrow(node, to, original)

    def behind(
        self, node: ir.Node, op_type: str, others: Sequence[ir.Value], dtype: ir.DataType, **attributes: Any
    ) -> ir.Node:
        """Put a node behind the result of another, and give its own that one's name; what it gives is `dtype`.

        Args:
            node: whose only output the new one reads first.
            op_type: of the new node.
            others: what it reads besides.
            dtype: element type of what it gives.
            attributes: of the new node.
        """
        output = node.outputs[0]
        site = node.metadata_props.get(ADDED, node.name or "")
        after = ir.node(op_type, [output, *others], attributes, name=self.fresh(f"{site}.{op_type}"))
        after.metadata_props[ADDED] = site
        self.model.graph.insert_after(node, after)
        after.outputs[0].type = ir.TensorType(dtype)
        self.take_over(output, after.outputs[0])
        after.replace_input_with(0, output)
        return after

    def narrow(self, node: ir.Node, computed: ir.DataType, original: ir.DataType) -> ir.Node:
        """Say in which type a product computes now, and give its result the type that it had; returns the Cast."""
        output = node.outputs[0]
        cast = ir.node("Cast", [output], {"to": int(original)}, name=self.fresh(f"{node.name}.narrowed"))
        cast.metadata_props[ADDED] = node.metadata_props.get(ADDED, node.name or "")
        self.model.graph.insert_after(node, cast)
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(original), output.shape
        self.take_over(output, cast.outputs[0])
        cast.replace_input_with(0, output)
        output.type = ir.TensorType(computed)  # a type of its own: the graph that this is a copy of has the other
        return cast

    def shield(self, node: ir.Node) -> None:
        """Part an integer product from the Add, Relu or Clip behind it by a Reshape that changes nothing.

        ONNX Runtime merges product and Add into a Gemm before it looks for quantized products, and a Gemm with a
        floating-point bias then runs in floating point. It does so where the product has two axes, or sizes that are
        all known. A Relu or Clip it takes for a part of the quantized product, which it gives up where no quantizer
        follows.
        """
        output = node.outputs[0]
        dims = None if output.shape is None else list(output.shape)
        symbolic = dims is not None and len(dims) > 2 and not all(isinstance(d, int) for d in dims)
        reader = _only_reader(output)
        if reader not in ("Add", "Relu", "Clip") or (reader == "Add" and symbolic):
            return
        if dims is None:  # a Reshape needs to know how many axes there are; a sum of one term does not
            apart = ir.node("Sum", [output], name=self.fresh(f"{node.name}.apart"))
        else:
            name = f"spq_graph.same_{len(dims)}_axes"
            if name not in self.shared:
                self.shared[name] = self.constant(name, ir.Tensor(np.zeros(len(dims), dtype=np.int64)))
            apart = ir.node("Reshape", [output, self.shared[name]], name=self.fresh(f"{node.name}.apart"))
        apart.metadata_props[ADDED] = node.name or ""
        self.model.graph.insert_after(node, apart)
        describe_like(apart.outputs[0], output)
        self.take_over(output, apart.outputs[0])
        apart.replace_input_with(0, output)

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let `new` stand where `old` stood, under its name."""
        name = old.name
        old.name, new.name = self.fresh(f"{name}.inner"), name
        old.replace_all_uses_with(new, replace_graph_outputs=True)


def _only_reader(value: ir.Value) -> str | None:
    """The operator that alone reads a value, seen through those that the runtime drops; None where there are more."""
    while len(readers := [use.node for use in value.uses()]) == 1:
        if readers[0].op_type not in ("Identity", "Dropout"):
            return readers[0].op_type
        value = readers[0].outputs[0]
    return None


def describe_like(value: ir.Value, other: ir.Value) -> None:
    """Give a value the element type and the shape of another, as far as they are known."""
    value.type = None if other.dtype is None else ir.TensorType(other.dtype)
    value.shape = other.shape


def drop_unused(model: ir.Model, candidates: Sequence[ir.Value]) -> None:
    """Remove constants that an edit left without a reader, and the nodes between them and their former reader."""
    graph = model.graph
    pending, seen = list(candidates), set[ir.Value]()
    while pending:
        value = pending.pop()
        node = value.producer()
        made = [value] if node is None else node.outputs
        if value in seen or any(one.uses() or one.is_graph_output() for one in made):
            continue
        seen.update(made)
        if node is not None:
            pending += [operand for operand in node.inputs if operand is not None]
            graph.remove(node, safe=True)
        elif value.name is not None and value.name in graph.initializers:
            graph.initializers.pop(value.name)


def _attribute(name: str, value: Any) -> Any:
    """A number or a word as the attribute that `ir.node` would make of it, which it asks a dozen protocols for."""
    if isinstance(value, int):
        return ir.AttrInt64(name, value)
    if isinstance(value, float):
        return ir.AttrFloat32(name, value)
    return ir.AttrString(name, value) if isinstance(value, str) else value
