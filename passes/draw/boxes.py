"""One decoder layer of a graph as boxes, for people.

Sites and what was inserted are shown one by one, all other nodes together with those that depend on the same of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from spq_graph.documents.drawing import Box, BoxKind
from spq_graph.documents.plan import SitePlan
from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.base.values import scalar_of, weight_of
from spq_graph.passes.draw.layer_part import Layer, cut_out, is_constant, producers_of
from spq_graph.passes.forms.reading import precision_of
from spq_graph.passes.forms.rules import producer_of
from spq_graph.terms.precision import Precision

_QUANTIZERS = frozenset({"Clip", "Cast", "QuantizeLinear", "DequantizeLinear"})
_MOVES = frozenset({"Reshape", "Transpose", "Concat", "Unsqueeze", "Squeeze", "Expand", "Slice", "Shape", "Gather"})
# What a group of nodes is called: the first line one of whose operators is among them.
_TITLES = (
    ("routing", {"TopK"}),
    ("attention", {"Attention", "GroupQueryAttention", "MultiHeadAttention"}),
    ("attention scores", {"Softmax"}),
    (
        "normalization",
        {
            "ReduceMean",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
            "LayerNormalization",
            "SkipSimplifiedLayerNormalization",
            "SkipLayerNormalization",
        },
    ),
    ("rotary embedding", {"Neg", "Cos", "RotaryEmbedding"}),
    ("attention output", {"MatMul"}),
    ("activation", {"Sigmoid", "Swish", "QuickGelu", "Gelu", "FastGelu", "Erf", "Tanh", "Relu"}),
    ("embedding", {"Gather"}),
)
_PLAIN = {frozenset({"Mul"}): "gate × up", frozenset({"Mul", "Add"}): "weighted sum"}
_NAMES = 12


@dataclass(slots=True)
class _Group:
    """The nodes of one box while it is put together."""

    kind: BoxKind
    nodes: list[ir.Node] = field(default_factory=list)


def draw_layer(model: ir.Model, sites: Sequence[SitePlan], layer: int) -> list[Box]:
    """The boxes of one layer, in topological order; none where the graph holds no site of it.

    Of several experts the first is drawn and the others are counted. The graph must have been through `Canonicalize`;
    nothing is changed.
    """
    by_name = {node.name: node for node in model.graph}
    numbered = [(site, node) for site in sites if (node := by_name.get(site.node)) is not None]
    part = cut_out(model.graph, [(site.layer, node) for site, node in numbered], layer)
    first = min((s.expert for s, _ in numbered if s.layer == layer and s.expert is not None), default=None)
    shown = {node: site for site, node in numbered if site.layer == layer and site.expert in (None, first)}
    hidden = {site.node for site, _ in numbered if site.expert not in (None, first)}
    return _boxes(part, shown, hidden) if shown else []


def layer_to_draw(sites: Iterable[SitePlan]) -> int | None:
    """The layer that tells most: where the largest spike is kept, or else where it is."""
    placed = [site for site in sites if site.layer is not None]
    best = max(
        placed,
        key=lambda s: (s.precision.bits is None and not s.role.left_alone, s.evidence.ratio or 0.0, -(s.layer or 0)),
        default=None,
    )
    return best.layer if best is not None else None


def _boxes(part: Layer, shown: dict[ir.Node, SitePlan], hidden: set[str]) -> list[Box]:
    group_of: dict[ir.Node, _Group] = {}
    behind: dict[ir.Node, frozenset[int]] = {}  # the groups shown one by one that a node depends on
    if part.entry is not None:
        group_of[part.entry] = _Group("stream", [part.entry])
        behind[part.entry] = frozenset()
    for node in part.nodes:
        above = [group_of[n] for n in producers_of(node) if n in group_of]
        behind[node] = frozenset().union(
            *(
                behind[n] | ({id(group_of[n])} if group_of[n].kind != "other" else set())
                for n in producers_of(node)
                if n in group_of
            )
        )
        group = _joins(node, above, behind, hidden) if node not in shown else None
        if group is None:
            group = _Group(_kind(node, shown, hidden))
        group.nodes.append(node)
        group_of[node] = group
    _merge_equal(part.nodes, group_of, behind)
    _merge_hidden(part.nodes, group_of, behind, hidden)
    return _described(group_of, shown, hidden)


def _kind(node: ir.Node, shown: dict[ir.Node, SitePlan], hidden: set[str]) -> BoxKind:
    if node in shown:
        return "site"
    return "quantizer" if _is_quantizer(node, hidden) else "other"


def _is_quantizer(node: ir.Node, hidden: set[str]) -> bool:
    return node.op_type in _QUANTIZERS and ADDED in node.metadata_props and node.metadata_props[ADDED] not in hidden


def _joins(
    node: ir.Node, above: list[_Group], behind: dict[ir.Node, frozenset[int]], hidden: set[str]
) -> _Group | None:
    """The group that a node continues: inserted nodes a chain of them, others what depends on the same."""
    if _is_quantizer(node, hidden):
        return next((g for g in above if g.kind == "quantizer"), None)
    return next((g for g in above if g.kind == "other" and behind[g.nodes[-1]] == behind[node]), None)


def _merge_equal(
    order: Sequence[ir.Node], group_of: dict[ir.Node, _Group], behind: dict[ir.Node, frozenset[int]]
) -> None:
    """Make one of neighbours that depend on the same: a chain may have met two groups that were apart until then."""
    for node in order:
        group = group_of[node]
        for other in {id(group_of[n]): group_of[n] for n in producers_of(node) if n in group_of}.values():
            if other is group or {group.kind, other.kind} != {"other"} or behind[other.nodes[-1]] != behind[node]:
                continue
            other.nodes += group.nodes
            for moved in group.nodes:
                group_of[moved] = other
            group = other


def _merge_hidden(
    order: Sequence[ir.Node], group_of: dict[ir.Node, _Group], behind: dict[ir.Node, frozenset[int]], hidden: set[str]
) -> None:
    """Make one of all experts that are not drawn: they stand beside each other, and there may be hundreds."""
    first: dict[frozenset[int], _Group] = {}
    for node in order:
        group = group_of[node]
        if node.name not in hidden:
            continue
        other = first.setdefault(behind[node], group)
        if other is not group:
            other.nodes += group.nodes
            group_of.update(dict.fromkeys(group.nodes, other))


def _described(group_of: dict[ir.Node, _Group], shown: dict[ir.Node, SitePlan], hidden: set[str]) -> list[Box]:
    place = {node: index for index, node in enumerate(group_of)}
    groups = list({id(g): g for g in group_of.values()}.values())
    above = {
        id(g): {id(group_of[n]) for m in g.nodes for n in producers_of(m) if n in group_of} - {id(g)} for g in groups
    }
    ordered = _sorted(groups, above)
    number = {id(g): index for index, g in enumerate(ordered)}
    boxes = []
    for group in ordered:
        group.nodes.sort(key=place.__getitem__)
        stream = group.kind == "stream"
        kind, title, detail = _words(group, shown, hidden)
        names = [node.name or node.op_type for node in group.nodes]
        boxes.append(
            Box(
                kind=kind,
                title=title,
                detail=detail,
                nodes=names[:_NAMES],
                count=len(names),
                reads=[] if stream else sorted(number[g] for g in above[id(group)]),
            )
        )
    return boxes


def _sorted(groups: list[_Group], above: dict[int, set[int]]) -> list[_Group]:
    """In topological order, and otherwise as they came.

    Groups never form a ring: what depends on the same does not depend on what lies between.
    """
    done: set[int] = set()
    ordered: list[_Group] = []
    pending = list(groups)
    while pending:
        ready = next((g for g in pending if done.issuperset(above[id(g)]) or g.kind == "stream"), pending[0])
        pending.remove(ready)
        ordered.append(ready)
        done.add(id(ready))
    return ordered


def _words(group: _Group, shown: dict[ir.Node, SitePlan], hidden: set[str]) -> tuple[BoxKind, str, str]:
    first = group.nodes[0]
    if group.kind == "stream":
        return "stream", "hidden states", f"from {first.name}"
    if first in shown:
        return _words_of_site(first, shown[first])
    if group.kind == "quantizer":
        return "quantizer", " → ".join(dict.fromkeys(n.op_type for n in group.nodes)), _codes_of(group.nodes)
    others = sum(node.name in hidden for node in group.nodes)
    ops = [node.op_type for node in group.nodes]
    title = next((title for title, known in _TITLES if known.intersection(ops)), "")
    if not title:
        title = _PLAIN.get(frozenset(ops)) or ("reshape" if _MOVES.issuperset(ops) else ", ".join(ops[:2]))
    adds = [node for node in group.nodes[:2] if node.op_type == "Add"]  # one may stand behind what parts it
    if adds and sum(not is_constant(v) for v in adds[0].inputs) == 2:
        title = "residual" if set(ops) == {"Add"} else f"residual, {title}"
    counts = {op: ops.count(op) for op in dict.fromkeys(ops)}
    detail = ", ".join(op if count == 1 else f"{count} {op}" for op, count in counts.items())
    return "other", f"{others} products of other experts" if others else title, detail


def _words_of_site(node: ir.Node, site: SitePlan) -> tuple[BoxKind, str, str]:
    found = precision_of(node)
    shape = f"{site.shape[0]} × {site.shape[1]}"
    name = site.key.rsplit(".", 1)[-1] if "." in site.key else site.role.value
    if found is Precision.INT8:
        return "site", name, f"{node.op_type} {shape}\n{_weight_of(node)}"
    if found.row.by_block and site.precision.row.by_block:
        found = site.precision  # which of the two it is, its level tells on a CPU alone
    kept = site.precision.bits is None and not site.role.left_alone
    return "kept" if kept else "site", name, f"{node.op_type} {shape}\n{found.value}"


def _weight_of(node: ir.Node) -> str:
    """What an integer product holds its weight in, and whether it is dequantized in front of it."""
    back = producer_of(node.inputs[1], "DequantizeLinear")
    codes = weight_of(back.inputs[0] if back is not None else node.inputs[1])
    kind = _type_of(codes.tensor.dtype) if codes is not None else "integer"
    return f"{kind} weight → DQ" if back is not None else f"{kind} weight"


def _codes_of(nodes: Sequence[ir.Node]) -> str:
    """What an activation becomes: the type of its codes, their scale, and the zero point that integers have."""
    quantize = next((node for node in nodes if node.op_type == "QuantizeLinear"), None)
    if quantize is None:
        return ""
    scale, zero = scalar_of(quantize.inputs[1]), weight_of(quantize.inputs[2])
    if scale is None or zero is None:
        return ""
    kind, place = zero.tensor.dtype, scalar_of(quantize.inputs[2])
    beside = f", zero point {place:.0f}" if kind.is_integer() and place is not None else ""
    return f"{_type_of(kind)}, scale {scale:.3g}{beside}"


def _type_of(kind: ir.DataType) -> str:
    return kind.name.lower()
