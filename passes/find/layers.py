"""Layers and experts where names state none: both follow from which GLUs read one value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from spq_graph.passes.find.branches import MOVES
from spq_graph.terms.site import Role, Site

# Between a layer's hidden states and an expert's input: its tokens are picked or cut out, after each was repeated.
_TO_EXPERT = MOVES | {"Gather", "GatherND", "Expand", "Slice", "Split"}


def origin_of(value: ir.Value | None) -> ir.Value | None:
    """The hidden states that a GLU or a router reads, before tokens were picked from them."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _TO_EXPERT:
        value = node.inputs[0]
    return value


def layers_of(
    order: Sequence[ir.Node], glus: Sequence[tuple[ir.Value | None, ir.Node]]
) -> tuple[dict[ir.Node, int], list[int]]:
    """Layers by counting GLUs: everything up to one's down projection belongs to its layer.

    GLUs that read one value are experts of one layer, which the last of them ends.

    Args:
        order: the projections, in the graph's order.
        glus: what each GLU reads, and its down projection, in the graph's order.

    Returns:
        The layer of every projection that is in one, and of every GLU.
    """
    last = dict(glus)
    ends, layer = set(last.values()), 0
    numbers: dict[ir.Node, int] = {}
    for node in order:
        if layer < len(last):
            numbers[node] = layer
        layer += node in ends
    place = {origin: index for index, origin in enumerate(last)}
    return numbers, [place[origin] for origin, _ in glus]


def number_experts(nodes: dict[ir.Node, Site], glus: Sequence[tuple[ir.Value | None, Sequence[ir.Node]]]) -> None:
    """Number the experts that names do not: GLUs beside each other that read what a router reads, in their order.

    Args:
        nodes: sites by node; the experts' get their role and number.
        glus: what each GLU reads, and the nodes of its sites.
    """
    routed = {origin_of(node.inputs[0]) for node, site in nodes.items() if site.role is Role.ROUTER}
    beside: dict[ir.Value | None, list[Sequence[ir.Node]]] = {}
    for origin, members in glus:
        if origin in routed and all(nodes[node].expert is None for node in members):
            beside.setdefault(origin, []).append(members)
    for experts in beside.values():
        for number, members in enumerate(experts if len(experts) > 1 else ()):
            for node in members:
                nodes[node] = replace(nodes[node], role=nodes[node].role.of_expert, expert=number)
