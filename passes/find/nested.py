"""Layers that lie where none are sought: in the branches of an If, or in the body of a loop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir

from spq_graph.passes.base.values import is_product
from spq_graph.passes.find.identify import Identified
from spq_graph.passes.find.patterns import find_glus
from spq_graph.terms.errors import GraphError
from spq_graph.terms.halves import EXPORT_AGAIN, refuse_halves

_BODIES = {"Loop": "the body of Loop", "Scan": "the body of Scan", "If": "the branches of If"}


def refuse_nested(model: ir.Model, found: Identified, path: Path) -> None:
    """Refuse a graph whose layers lie inside of branches or loops, and what is no decoder of its own.

    A graph that has GLUs outside of them is taken, and so is one without any, but for what is inside: that stays.

    Args:
        model: the graph, canonical.
        found: what was found in its main graph.
        path: the file.

    Raises:
        GraphError: saying what it is, and what to pass in its place.
    """
    refuse_halves([value.name or "" for value in model.graph.inputs], path)
    if found.blocks:
        return
    inside = {node: sum(is_product(n) for body in _bodies(node) for n in body.all_nodes()) for node in model.graph}
    owner, count = next(iter(Counter(inside).most_common(1)), (None, 0))
    gated = any(_holds_glu(body, model) for node, products in inside.items() if products for body in _bodies(node))
    if owner is not None and count and (gated or not found.sites):
        place = f"{_BODIES.get(owner.op_type, f'a subgraph of {owner.op_type}')} '{owner.name}'"
        raise GraphError(
            f"{count} products of this graph lie in {place}, where nothing is quantized",
            where=str(path),
            remedy=EXPORT_AGAIN,
        )


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            continue
        if attribute.type is ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _holds_glu(body: ir.Graph, model: ir.Model) -> bool:
    if next(find_glus(ir.Model(body, ir_version=model.ir_version)), None) is not None:
        return True
    return any(_holds_glu(inner, model) for node in body for inner in _bodies(node))
