"""Cut several graphs of one kind at the same values, so that what two of them have in common is seen, and run once.

A candidate of a decision is the floating-point graph with some products written otherwise: its values keep their names.
Where the one graph is cut between two layers, the other can be cut, too, and stages that hold the same nodes over the
same tensors compute the same. A candidate then starts where it first differs, with what the floating-point graph
computed in front of that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from spq_graph.passes.pieces.cutter import Cutter, Piece, read_by
from spq_graph.passes.pieces.split import LIGHT_SHARE, limit_for, segment_of, signature
from spq_graph.terms.segment import Cut, Segmented, Stage, Staged

# As many stages as a graph is cut into at most, and the bytes of weights that one holds at least: a session for less
# than that is not worth its opening.
MOST_STAGES = 48
LEAST_BYTES = 1 << 20


def cuts_of(model: ir.Model, output: str) -> list[Cut]:
    """Where to cut a graph, so that about as many stages as it has layers each hold a share of its weights.

    Args:
        model: the graph, which must have been through `Canonicalize`; it is not changed.
        output: the value that is asked for.
    """
    tensors = [v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None]
    cutter = Cutter(model.graph, min(limit_for(model.graph), sum(tensors)) // LIGHT_SHARE)
    pieces = cutter.pieces(max(LEAST_BYTES, sum(cutter.held) // MOST_STAGES))
    cuts = []
    made: set[ir.Value] = set()
    for number, piece in enumerate(pieces[:-1]):
        made.update(piece.gives)
        cut = dict.fromkeys(v.name or "" for later in pieces[number + 1 :] for v in later.reads if v in made)
        if cut and output not in cut:
            cuts.append(tuple(cut))
    return cuts


def staged(model: ir.Model, where: Path, output: str, cuts: Sequence[Cut]) -> Staged:
    """Cut a graph at these values, where it has them.

    A product is never parted, however large: its parts would be in one stage all the same, as copies in memory of what
    is mapped from a file otherwise.

    Args:
        model: the graph, canonical.
        where: the file that it was read from.
        output: the value that is asked for.
        cuts: names of values, in the order of the graph.
    """
    graph = model.graph
    cutter = Cutter(graph, 0)
    values = {v.name: v for node in cutter.needed for v in node.outputs}
    order = {node: i for i, node in enumerate(cutter.needed)}
    found: list[Stage] = []
    before: Cut = ()
    for behind in [*(cut for cut in cuts if all(name in values for name in cut)), (output,)]:
        piece = _between(cutter, [values[n] for n in before], [values[n] for n in behind], order)
        if not piece.nodes:
            continue
        content = [_content(node, cutter.reads[node], graph.opset_imports) for node in piece.nodes]
        found.append(Stage(before, behind, segment_of(model, cutter, piece, where.resolve()), content))
        before = behind
    return Staged(Segmented(where, *signature(model), [stage.segment for stage in found]), tuple(found))


def _between(cutter: Cutter, before: list[ir.Value], behind: list[ir.Value], order: dict[ir.Node, int]) -> Piece:
    """The nodes that values follow from, as far back as to others; whatever is in front of those is handed over."""
    stop = set(before)
    gives = [value for value in behind if value not in stop]
    nodes: set[ir.Node] = set()
    reads: dict[ir.Value, None] = {}
    pending = list(gives)
    while pending:
        value = pending.pop()
        if value in stop:
            reads[value] = None
            continue
        producer = value.producer()
        if producer is not None and producer not in nodes:
            nodes.add(producer)
            pending += cutter.reads[producer]
    ordered = sorted(nodes, key=order.__getitem__)
    return Piece(ordered, [v for v in before if v in reads], gives, sum(map(cutter.bytes_of, ordered)))


def _content(node: ir.Node, reads: Iterable[ir.Value], opsets: Mapping[str, int]) -> tuple[Any, ...]:
    """What a node does to which values; tensors are told apart by identity, since copies of a graph share them.

    Of the opsets that a graph imports, only that of the node's own domain says what it does: a candidate may have
    operators of ours in other stages.
    """
    return (
        (*node.op_identifier(), opsets.get(node.domain)),
        tuple(v.name if v is not None else None for v in node.inputs),
        tuple(v.name for v in node.outputs),
        tuple(id(v.const_value) for v in reads if v.producer() is None and v.const_value is not None),
        tuple((name, _of_attribute(one, opsets)) for name, one in sorted(node.attributes.items())),
    )


def _of_attribute(attribute: ir.Attr, opsets: Mapping[str, int]) -> object:
    match attribute.type:
        case ir.AttributeType.GRAPH:
            return _of_graph(attribute.as_graph(), opsets)
        case ir.AttributeType.GRAPHS:
            return tuple(_of_graph(graph, opsets) for graph in attribute.as_graphs())
        case ir.AttributeType.TENSOR:
            return id(attribute.value)
        case _:
            return repr(attribute.value)


def _of_graph(graph: ir.Graph, opsets: Mapping[str, int]) -> object:
    held = tuple((name, id(value.const_value)) for name, value in graph.initializers.items())
    nodes = tuple(_content(node, read_by(node, graph), opsets) for node in graph)
    return held, tuple(v.name for v in graph.outputs), nodes
