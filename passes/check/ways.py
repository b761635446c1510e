"""Whether OpenVINO's compiler comes back from a graph: it follows every way back from what is quantized.

Its low-precision transformations ask of each quantized activation whether it is a constant
(`NetworkHelper::isConstantPath`): they go back node by node, breadth first, until they meet an input or a product, and
visit a node as often as there are ways to it. After n sums of a value with itself those are 2^n. In a decoder a product
is a few nodes away, however many ways there are behind it.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from spq_graph.passes.base.values import is_product

_MOST = 1 << 20  # visits: about a second and 100 MB, and some thousand times what decoders need
_ENDS = frozenset({"Conv", "ConvTranspose"})  # where it stops, beside products


def endless_ways(model: ir.Model) -> str | None:
    """The name of a product whose activation has more ways back than can be followed; None where there is none."""
    graph = model.graph
    most = _upper_bounds(graph)
    for node in filter(is_product, graph):
        if any(_is_endless(v) for v in node.inputs if v is not None and most.get(v, 0) > _MOST):
            return node.name or f"that gives '{node.outputs[0].name}'"
    return None


def _upper_bounds(graph: ir.Graph) -> dict[ir.Value, int]:
    """By value, how many visits there are behind it until each way has ended by itself; it is linear to tell."""
    found: dict[ir.Value, int] = {}
    for node in graph:
        visits = 0 if _ends(node) else sum(1 + found.get(v, 0) for v in node.inputs if v is not None)
        found.update(dict.fromkeys(node.outputs, min(visits, 1 << 62)))
    return found


def _is_endless(value: ir.Value) -> bool:
    """The same for one value, as far as the nearest end of all ways, where the search stops."""
    level, visits = {value: 1}, 0
    while level and visits <= _MOST:
        behind: Counter[ir.Value] = Counter()
        for at, ways in level.items():
            node = at.producer()
            if at.is_graph_input() or (node is not None and _ends(node)):
                return False
            for before in node.inputs if node is not None else ():
                if before is not None:
                    behind[before] += ways
        level, visits = behind, visits + behind.total()
    return visits > _MOST


def _ends(node: ir.Node) -> bool:
    return is_product(node) or node.op_type in _ENDS
