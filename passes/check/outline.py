"""What a graph was before a plan was applied to it, and what of that is no longer so although no site asks for it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.base.operand import Operand
from spq_graph.passes.base.values import attribute_of, is_product, weight_of

_MAY_GO = frozenset(f"::{op_type}:" for op_type in ("Transpose", "Cast", "Identity"))  # as operators of lines
_TOLD = 3
_AT_ONCE = 1 << 26  # bytes that two tensors are compared in


class Line(NamedTuple):
    """What must not change of a node.

    Attributes:
        name: of the node.
        operator: domain, type and overload.
        reads, gives: names of values.
        attributes: what they hold, by name; of a subgraph its nodes, as lines of their own.
    """

    name: str
    operator: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    attributes: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor, equal to others by its content: the same object, or the same type, shape and bytes."""

    tensor: ir.TensorProtocol

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Held):
            return NotImplemented
        return same_tensor(self.tensor, other.tensor)

    __hash__ = None  # type: ignore[assignment]


class Body(NamedTuple):
    """A subgraph: its nodes, its outputs and its constants."""

    lines: list[Line]
    gives: tuple[str, ...]
    constants: dict[str, Held]


@dataclass(frozen=True, slots=True)
class Outline:
    """A graph as it was.

    Attributes:
        lines: every node that no pass of ours added, in order.
        constants: what every initializer holds, by name.
        weights: the constant second operand of every product, by the product's name.
        ends: names, types and shapes of the inputs, and of the outputs.
        opset: of ONNX's own domain.
        functions: model-local functions by identifier.
    """

    lines: list[Line]
    constants: dict[str, ir.TensorProtocol]
    weights: dict[str, Operand]
    ends: tuple[list[str], list[str]]
    opset: int
    functions: dict[ir.OperatorIdentifier, ir.Function]


def outline(model: ir.Model) -> Outline:
    """What of a model must not change; no weight is read."""
    graph = model.graph
    return Outline(
        lines=_lines(node for node in graph if ADDED not in node.metadata_props),
        constants={name: tensor for name, v in graph.initializers.items() if (tensor := v.const_value) is not None},
        weights={node.name or "": operand for node in graph if (operand := _operand_of(node)) is not None},
        ends=(_described(graph.inputs), _described(graph.outputs)),
        opset=graph.opset_imports.get("", 1),
        functions=dict(model.functions),
    )


def _lines(nodes: Iterable[ir.Node]) -> list[Line]:
    return [
        Line(
            node.name or "",
            f"{node.domain}::{node.op_type}:{node.overload}",
            tuple((v.name or "") if v is not None else "" for v in node.inputs),
            tuple(v.name or "" for v in node.outputs),
            {name: _content(attribute) for name, attribute in node.attributes.items()},
        )
        for node in nodes
    ]


def _content(attribute: ir.Attr) -> object:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type is ir.AttributeType.TENSOR:
        return Held(attribute.as_tensor())
    if attribute.type is ir.AttributeType.GRAPH:
        return _body(attribute.as_graph())
    if attribute.type is ir.AttributeType.GRAPHS:
        return [_body(graph) for graph in attribute.as_graphs()]
    return attribute.value


def _body(graph: ir.Graph) -> Body:
    constants = {name: Held(v.const_value) for name, v in graph.initializers.items() if v.const_value is not None}
    return Body(_lines(graph), tuple(v.name or "" for v in graph.outputs), constants)


def _operand_of(node: ir.Node) -> Operand | None:
    weight = weight_of(node.inputs[1]) if is_product(node) and len(node.inputs) > 1 else None
    return None if weight is None else Operand(weight, bool(attribute_of(node, "transB", 0)))


def _described(values: Iterable[ir.Value]) -> list[str]:
    return [f"{value.name}: {value.dtype} {value.shape}" for value in values]


def same_tensor(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    """Whether two tensors hold the same bytes; one object, or one place in a file, is not read."""
    if one is other:
        return True
    if one.dtype is not other.dtype or one.shape != other.shape:
        return False
    if isinstance(one, ir.ExternalTensor) and isinstance(other, ir.ExternalTensor):
        places = [(tensor.path, tensor.offset, tensor.length) for tensor in (one, other)]
        if places[0] == places[1]:
            return True
    if one.dtype is ir.DataType.STRING:
        return bool(np.array_equal(one.numpy(), other.numpy()))
    a, b = _bytes_of(one), _bytes_of(other)
    return all(np.array_equal(a[at : at + _AT_ONCE], b[at : at + _AT_ONCE]) for at in range(0, a.size, _AT_ONCE))


def _bytes_of(tensor: ir.TensorProtocol) -> npt.NDArray[np.uint8]:
    """Views where the tensor lies in a file."""
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8)


def changed(before: Outline, model: ir.Model, sites: Collection[str], belonging: Collection[ir.Value]) -> Iterator[str]:
    """What is no longer as it was, in words.

    Args:
        before: the graph as it was.
        model: as it is.
        sites: nodes that the plan changes.
        belonging: constants that belong to those, which are held against the plan elsewhere.
    """
    after = outline(model)
    yield from _changed_nodes(before.lines, after.lines, sites)
    yield from _changed_constants(before, model.graph, belonging)
    for what, old, new in zip(("inputs", "outputs"), before.ends, after.ends, strict=True):
        if old != new:
            yield f"the graph's {what} changed: {', '.join(sorted(set(old) ^ set(new)) or ['their order'])}"
    if before.opset != after.opset:
        yield f"the opset changed from {before.opset} to {after.opset}"


def _changed_nodes(before: Iterable[Line], after: Iterable[Line], sites: Collection[str]) -> Iterator[str]:
    """Nodes outside of the sites that came, went, moved, or are something else than they were.

    What led from a constant to a product may be gone. Whatever else read it would have to read something else now.
    """
    new = {line.name: line for line in after if line.name not in sites}
    old = {
        line.name: line
        for line in before
        if line.name not in sites and (line.name in new or line.operator not in _MAY_GO)
    }
    wrong = sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
    if not wrong and list(old) != list(new):
        wrong = ["their order"]
    if wrong:
        told = (f"{name}{_difference(old.get(name), new.get(name))}" for name in wrong[:_TOLD])
        yield f"nodes outside of the plan changed: {', '.join(told)}"


def _difference(old: Line | None, new: Line | None) -> str:
    """What of a node changed, in brackets; nothing where there is only one of the two."""
    if old is None or new is None:
        return ""
    names = sorted({**old.attributes, **new.attributes})
    names = [name for name in names if old.attributes.get(name) != new.attributes.get(name)]
    if names:
        return f" (attribute {', '.join(names)})"
    return next((f" ({what})" for what in Line._fields[1:4] if getattr(old, what) != getattr(new, what)), "")


def _changed_constants(before: Outline, graph: ir.Graph, belonging: Collection[ir.Value]) -> Iterator[str]:
    """Constants that hold something else than they did, came with no site, or are read and are not the graph's."""
    for name, value in graph.initializers.items():
        held = before.constants.get(name)
        if value in belonging and held is None:
            continue
        if held is None or value.const_value is None:
            yield f"constant {name} is in no source, and belongs to no site of the plan"
        elif not same_tensor(held, value.const_value):
            yield f"constant {name} does not hold what the source does"
    for node in graph:
        for read in node.inputs:
            if read is None or read.producer() is not None or read.is_graph_input():
                continue
            if graph.initializers.get(read.name or "") is not read:
                yield f"{node.name} reads '{read.name}', which is not the graph's constant of that name"
