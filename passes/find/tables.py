"""Where tokens are looked up: every Gather from a constant table, by ids that come from outside, becomes a Site.

A table may be read by several of them, and by a head, whose weight it is where the two are tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from spq_graph.passes.base.operand import Operand, operand_of
from spq_graph.passes.base.values import SEEN_THROUGH, is_lookup, is_standard, users_of
from spq_graph.passes.find.collect import module_path
from spq_graph.passes.numbers.scales import block_size_for
from spq_graph.terms.held import Held
from spq_graph.terms.site import Role, Site, Unmatched

_TO_IDS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Where", "Clip", "Flatten", "Mod"})
_NOT_IDS = ("mask", "position", "type", "past", "cache", "len")
_LONGEST = 16  # nodes between ids that come in and a lookup by them
_SCALE_BYTES = 4


@dataclass(slots=True)
class Tables:
    """What was found.

    Attributes:
        sites: lookups, by node, in the graph's order.
        held: how the table of each lookup, and the weight of each head, lies in the graph, by site key.
        unmatched: lookups that became no sites, and why.
    """

    sites: dict[ir.Node, Site] = field(default_factory=dict)
    held: dict[str, Held] = field(default_factory=dict)
    unmatched: list[Unmatched] = field(default_factory=list)


def find_tables(graph: ir.Graph, heads: Mapping[ir.Node, str]) -> Tables:
    """Find every lookup of tokens, and how what it reads is held.

    Args:
        graph: canonical; nothing is changed.
        heads: the products that are heads, with the keys of their sites.
    """
    found, ids, keys = Tables(), ids_of(graph), set(heads.values())
    for node in graph:
        operand = operand_of(node) if is_lookup(node) else None
        if operand is None or not comes_from(node.inputs[1], ids):
            continue
        name = node.name or ""
        if (reason := _odd(node, operand)) is not None:
            found.unmatched.append(Unmatched(name, reason))
            continue
        key = module_path(node) or name
        key = f"{key}/{name}" if key in keys else key
        keys.add(key)
        tokens, channels = operand.weight.shape
        given = node.inputs[1].name if node.inputs[1] is not None else None
        found.sites[node] = Site(
            key=key, node=name, role=Role.EMBEDDING, layer=None, shape=(tokens, channels), input=given or ""
        )
    known = {**heads, **{node: site.key for node, site in found.sites.items()}}
    for node, key in known.items():
        if (operand := operand_of(node)) is not None:
            found.held[key] = _held(operand, set(known))
    return found


def _odd(node: ir.Node, operand: Operand) -> str | None:
    """Why a lookup is left alone, in words; None where it is not."""
    if operand.dtype is ir.DataType.DOUBLE:
        return "its table holds float64; it stays as it is"
    if node.inputs[1] is None or node.inputs[1].shape is None:
        return "it is not known how many axes its ids have; it stays as it is"
    return None


def _held(operand: Operand, known: set[ir.Node]) -> Held:
    initializer, (rows, columns) = operand.weight.initializer, operand.shape
    block = block_size_for(rows)
    coded = columns * -(-rows // block) * (block + _SCALE_BYTES)
    others = any(node not in known for node in _readers(initializer)) or initializer.is_graph_output()
    return Held(initializer.name or "", operand.weight.tensor.nbytes, coded, others)


def _readers(value: ir.Value) -> list[ir.Node]:
    """The nodes that a constant reaches, seen through Cast, Identity and Transpose."""
    found: list[ir.Node] = []
    for node in users_of(value):
        through = node.op_type in SEEN_THROUGH and is_standard(node)
        found += _readers(node.outputs[0]) if through else [node]
    return found


def ids_of(graph: ir.Graph) -> frozenset[ir.Value]:
    """The inputs that may hold token ids: the one of that name, or any integers that their name tells nothing of."""
    named = [value for value in graph.inputs if value.name == "input_ids"]
    kinds = (ir.DataType.INT64, ir.DataType.INT32)
    others = [v for v in graph.inputs if v.dtype in kinds and not any(w in (v.name or "").lower() for w in _NOT_IDS)]
    return frozenset(named or others)


def comes_from(value: ir.Value | None, ids: frozenset[ir.Value]) -> bool:
    """Whether a value holds token ids, however they are moved and cut."""
    pending, left = [value], _LONGEST
    while pending and left:
        value, left = pending.pop(), left - 1
        if value is None or value in ids:
            if value is not None:
                return True
            continue
        if (node := value.producer()) is not None and node.op_type in _TO_IDS:
            pending += node.inputs[1:] if node.op_type == "Where" else node.inputs[:1]
    return False
