"""Which nodes of a graph are one decoder layer: from where the hidden states enter it to where they leave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from spq_graph.passes.base.values import FLOATS


@dataclass(slots=True)
class Layer:
    """What of a graph belongs to one layer: the nodes in order, and the one whose output enters it."""

    nodes: list[ir.Node]
    entry: ir.Node | None


def cut_out(graph: ir.Graph, numbered: Sequence[tuple[int | None, ir.Node]], layer: int) -> Layer:
    """From where the hidden states enter the layer to where they leave it."""
    earlier = _ancestors(node for number, node in numbered if number is not None and number < layer)
    inside = _ancestors(node for number, node in numbered if number == layer) - earlier
    later = [node for number, node in numbered if number is not None and number > layer]
    ends = later or [node for number, node in numbered if number is None] or _last(graph)
    behind = _ancestors(ends) - inside - earlier
    entry, leave = (_entry([node for node in graph if node in region], region) for region in (inside, behind))
    before = _ancestors([entry]) if entry is not None else set()
    after = _ancestors([leave]) if leave is not None else set()
    kept = (inside - before) | (after & behind)
    nodes = [node for node in graph if node in kept and not _is_static(node)]
    return Layer(nodes if entry is None else _following(entry, nodes), entry)


def _following(entry: ir.Node, order: Sequence[ir.Node]) -> list[ir.Node]:
    """What depends on the hidden states: not masks and tables of positions, which all layers share."""
    seen = {entry}
    for node in order:
        if not seen.isdisjoint(producers_of(node)):
            seen.add(node)
    return [node for node in order if node in seen]


def _last(graph: ir.Graph) -> list[ir.Node]:
    return [node for value in graph.outputs[:1] if (node := value.producer()) is not None]


def _entry(order: Sequence[ir.Node], region: set[ir.Node]) -> ir.Node | None:
    """Where a layer's residual begins: the first sum of activations, or embedding, whose result goes two ways."""
    for node in order:
        if not node.outputs:
            continue
        value = node.outputs[0]
        embeds = node.op_type == "Gather" and _is_table(node.inputs[0])
        if not (embeds or (node.op_type == "Add" and (value.dtype is None or value.dtype in FLOATS))):
            continue
        if len({use.node for use in value.uses()} & region) > 1:
            return node
    return None


def _is_table(value: ir.Value | None) -> bool:
    return is_constant(value) and value is not None and value.shape is not None and len(value.shape) == 2


def _ancestors(nodes: Iterable[ir.Node]) -> set[ir.Node]:
    """The nodes, and all that they depend on."""
    pending, seen = list(nodes), set()
    while pending:
        node = pending.pop()
        if node not in seen:
            seen.add(node)
            pending += producers_of(node)
    return seen


def producers_of(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that make what a node reads."""
    for value in node.inputs:
        if value is not None and (producer := value.producer()) is not None:
            yield producer


def _is_static(node: ir.Node, depth: int = 6) -> bool:
    """Whether nothing but constants goes into a node, as with a weight's DequantizeLinear."""
    if depth == 0 or not node.inputs:
        return False
    for value in node.inputs:
        if value is None or value.const_value is not None or value.is_initializer():
            continue
        producer = value.producer()
        if producer is None or not _is_static(producer, depth - 1):
            return False
    return True


def is_constant(value: ir.Value | None) -> bool:
    """Whether an operand is none that a node computes: a constant, or left out."""
    return value is None or value.const_value is not None or value.is_initializer()
