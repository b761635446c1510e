"""What a graph was before a plan was applied to it, and what of that is no longer so although no site asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.base.operand import Operand, operand_of
from spq_graph.passes.base.values import is_lookup, same_tensor

_TOLD = 3


class Line(NamedTuple):
    """What must not change of a node.

    Attributes:
        name: of the node.
        operator: domain, type and overload.
        reads, gives: names of values.
        types: of the values that it gives, as far as they are known.
        attributes: what they hold, by name; of a subgraph its nodes, as lines of their own.
    """

    name: str
    operator: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    types: tuple[ir.DataType | None, ...]
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
    """A subgraph: its nodes, its inputs, its outputs and its constants."""

    lines: list[Line]
    takes: list[str]
    gives: list[str]
    constants: dict[str, Held]


@dataclass(frozen=True, slots=True)
class Outline:
    """A graph as it was.

    Attributes:
        lines: every node that no pass of ours added, in order.
        constants: what every initializer holds, by name.
        weights: the constant operand of every product and the table of every lookup, by the node's name.
        axes: of the ids of every lookup, by the node's name.
        ends: names, types and shapes of the inputs, and of the outputs.
        imports: opsets by domain.
        ir_version: of the file.
        functions: model-local functions by identifier.
    """

    lines: list[Line]
    constants: dict[str, ir.TensorProtocol]
    weights: dict[str, Operand]
    axes: dict[str, int]
    ends: tuple[list[str], list[str]]
    imports: dict[str, int]
    ir_version: int
    functions: dict[ir.OperatorIdentifier, ir.Function]

    @property
    def opset(self) -> int:
        """Of ONNX's own domain."""
        return self.imports.get("", 1)

    def holds(self, operand: Operand) -> bool:
        """Whether a weight is still what its constant was."""
        initializer = operand.weight.initializer
        return self.constants.get(initializer.name or "") is initializer.const_value


def outline(model: ir.Model) -> Outline:
    """What of a model must not change; no weight is read."""
    graph = model.graph
    return Outline(
        lines=[line_of(node) for node in graph if ADDED not in node.metadata_props],
        constants={name: tensor for name, v in graph.initializers.items() if (tensor := v.const_value) is not None},
        weights={node.name or "": operand for node in graph if (operand := operand_of(node)) is not None},
        axes={node.name or "": len(shape) for node in graph if is_lookup(node) and (shape := _shape_of_ids(node))},
        ends=(_described(graph.inputs), _described(graph.outputs)),
        imports=dict(graph.opset_imports),
        ir_version=model.ir_version,
        functions=dict(model.functions),
    )


def line_of(node: ir.Node) -> Line:
    """What must not change of a node."""
    return Line(
        node.name or "",
        f"{node.domain}::{node.op_type}:{node.overload}",
        tuple((v.name or "") if v is not None else "" for v in node.inputs),
        tuple(v.name or "" for v in node.outputs),
        tuple(v.dtype for v in node.outputs),
        {name: _content(attribute) for name, attribute in node.attributes.items()},
    )


def _content(attribute: ir.Attr) -> object:
    if attribute.is_ref():
        return f"@{attribute.ref_attr_name}"
    if attribute.type is ir.AttributeType.TENSOR:
        return Held(attribute.as_tensor())
    if attribute.type is ir.AttributeType.GRAPH:
        return _body(attribute.as_graph())
    if attribute.type is ir.AttributeType.GRAPHS:
        return [_body(graph) for graph in attribute.as_graphs()]
    if attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return attribute.type, np.asarray(attribute.value, dtype=np.float32).tobytes()  # NaN is what it was
    return attribute.type, attribute.value


def _body(graph: ir.Graph) -> Body:
    constants = {name: Held(v.const_value) for name, v in graph.initializers.items() if v.const_value is not None}
    return Body([line_of(node) for node in graph], _described(graph.inputs), _described(graph.outputs), constants)


def _shape_of_ids(node: ir.Node) -> ir.Shape | None:
    return node.inputs[1].shape if node.inputs[1] is not None else None


def _described(values: Iterable[ir.Value]) -> list[str]:
    return [f"{value.name}: {value.dtype} {value.shape}" for value in values]


def changed(before: Outline, model: ir.Model, sites: Collection[str], belonging: Collection[ir.Value]) -> Iterator[str]:
    """What is no longer as it was, in words.

    Args:
        before: the graph as it was.
        model: as it is.
        sites: nodes that the plan changes.
        belonging: constants that belong to those, which are held against the plan elsewhere.
    """
    after = outline(model)
    yield from _ambiguous(model.graph)
    yield from _out_of_order(model.graph)
    yield from _changed_nodes(before, after.lines, sites)
    yield from _renamed(before, model.graph, sites)
    yield from _changed_constants(before, model, belonging)
    for what, old, new in zip(("inputs", "outputs"), before.ends, after.ends, strict=True):
        if old != new:
            yield f"the graph's {what} changed: {', '.join(sorted(set(old) ^ set(new)) or ['their order'])}"


def _ambiguous(graph: ir.Graph) -> Iterator[str]:
    """Names that a node or a value shares with another: all that follows tells them apart by these."""
    given = [value for node in graph for value in node.outputs if value.name or value.uses()]
    values = {*graph.inputs, *graph.initializers.values(), *graph.outputs, *given}
    for what, names in (("nodes", [node.name for node in graph]), ("values", [value.name for value in values])):
        name, count = Counter(names).most_common(1)[0]
        if count > 1 or not all(names):
            yield f"several {what} are called '{name}'" if count > 1 else f"one of the {what} has no name"


def _out_of_order(graph: ir.Graph) -> Iterator[str]:
    """Nodes in front of what they read, and outputs that nothing gives."""
    known = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        late = next((v for v in node.inputs if v is not None and v not in known and v.producer() is not None), None)
        if late is not None:
            yield f"{node.name} stands in front of what gives '{late.name}'"
        known.update(node.outputs)
    for value in graph.outputs:
        if value not in known:
            yield f"nothing gives the output '{value.name}'"


def _renamed(before: Outline, graph: ir.Graph, sites: Collection[str]) -> Iterator[str]:
    """Inserted values under the name of one that was there, which readers would take them for."""
    names = {name for line in before.lines if line.name not in sites for name in line.gives if name}
    own = {line.name for line in before.lines if line.name not in sites}
    for node in graph:
        if node.name not in own and (taken := next((v.name for v in node.outputs if v.name in names), None)):
            yield f"{node.name} gives '{taken}', which is another value's name"


def _changed_nodes(before: Outline, after: Iterable[Line], sites: Collection[str]) -> Iterator[str]:
    """Nodes outside of the sites that came, went, moved, or are something else than they were.

    What led from a constant to a product of a site may be gone. Whatever else read it would have to read something
    else now.
    """
    led = {node.name for name, operand in before.weights.items() if name in sites for node in operand.weight.through}
    new = {line.name: line for line in after if line.name not in sites}
    old = {
        line.name: line
        for line in before.lines
        if line.name not in sites and (line.name in new or line.name not in led)
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
    return next((f" ({what})" for what in Line._fields[1:5] if getattr(old, what) != getattr(new, what)), "")


def _changed_constants(before: Outline, model: ir.Model, belonging: Collection[ir.Value]) -> Iterator[str]:
    """Constants that hold something else than they did, came with no site, or are read and are not the graph's."""
    graph = model.graph
    for name, value in graph.initializers.items():
        held = before.constants.get(name)
        if value in belonging and held is None:
            continue
        if held is None or value.const_value is None:
            yield f"constant {name} is in no source, and belongs to no site of the plan"
        elif not same_tensor(held, value.const_value):
            yield f"constant {name} does not hold what the source does"
    known = {v for inner in model.graphs() for v in inner.initializers.values()}
    for node in graph.all_nodes():
        for read in node.inputs:
            if read is None or read.producer() is not None or read.is_graph_input() or read in known:
                continue
            yield f"{node.name} reads '{read.name}', which is not the graph's constant of that name"
