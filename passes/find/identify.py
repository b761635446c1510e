"""Every product with a constant weight becomes a Site with a role; the rest is listed with the reason."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from spq_graph.passes.base.values import scalar_of, users_of, weight_of
from spq_graph.passes.find.attention import find_cores, site_after, sites_behind
from spq_graph.passes.find.branches import find_adapters, passed_on, projection, scaled_from
from spq_graph.passes.find.collect import collect_sites, stored_in
from spq_graph.passes.find.experts import (
    FusedExperts,
    StackedGlu,
    StackedProduct,
    find_fused,
    find_stacked,
    is_fused,
    stacked_glu,
    with_roles,
)
from spq_graph.passes.find.layers import layers_of, number_experts, origin_of
from spq_graph.passes.find.logits import find_logits
from spq_graph.passes.find.misses import near_miss, unknown_gate
from spq_graph.passes.find.patterns import GluMatch, find_glus
from spq_graph.passes.find.tables import find_tables
from spq_graph.terms.errors import GraphError
from spq_graph.terms.held import Held
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site, Unmatched

_TO_OUTPUT = frozenset({"Cast", "Identity", "Mul", "Div", "Tanh", "Add", "Slice", "Reshape", "Gather", "Squeeze"})
_RANKS = frozenset({"TopK", "ArgMax"})  # some take the best one, mask it out, and take the best one again
_TO_TOPK = frozenset(
    {"Softmax", "Sigmoid", "Add", "Sub", "Mul", "Div", "Cast", "Identity", "Reshape", "Where", "Unsqueeze", "Squeeze"}
)


@dataclass(frozen=True, slots=True)
class GluBlock:
    """One GLU: the node of its product and the keys of its projections (gate == up where they are fused)."""

    kind: str
    product: str
    gate: str
    up: str
    down: str
    layer: int | None


@dataclass(slots=True)
class Identified:
    """What was found in a graph.

    Attributes:
        sites: products.
        tables: lookups of tokens.
        stored: the floating-point format of each one's weight or table there, by key.
        held: how that lies there, of heads and tables, by key.
        blocks: GLUs.
        unmatched: what became no site, and why.
    """

    sites: list[Site] = field(default_factory=list)
    tables: list[Site] = field(default_factory=list)
    held: dict[str, Held] = field(default_factory=dict)
    stored: dict[str, Precision] = field(default_factory=dict)
    blocks: list[GluBlock] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)

    @property
    def every(self) -> list[Site]:
        """Products, and behind them tables."""
        return [*self.sites, *self.tables]


@dataclass(slots=True)
class _Glus:
    """What is known of GLUs beyond their blocks, while they are found.

    Attributes:
        stacked: products with a stack of experts, by node.
        fused: mixtures of experts in one operator, by node.
        order: sites, stacked products and mixtures in one operator, in the graph's order.
        reads: for each block, the hidden states that it reads and its projections, down last.
    """

    stacked: dict[ir.Node, StackedProduct]
    fused: dict[ir.Node, FusedExperts]
    order: list[ir.Node]
    reads: list[tuple[ir.Value | None, list[ir.Node]]] = field(default_factory=list)


def identify(model: ir.Model) -> Identified:
    """Find every Site of the main graph and its role.

    The graph must have been through `Canonicalize`. Nothing is changed. Time is linear in the number of nodes.
    """
    nodes, unmatched = collect_sites(model.graph)
    found = Identified(unmatched=unmatched)
    stacked, fused = find_stacked(model.graph), find_fused(model.graph)
    glus = _Glus(stacked, fused, [n for n in model.graph if n in nodes or n in stacked or n in fused])
    adapters = find_adapters(model.graph, nodes)
    _assign_glus(model, nodes, adapters, found, glus)
    _record_fused(found, glus)
    _assign_attention(model.graph, nodes, adapters, found)
    _assign_ends(model, nodes)
    _number_layers(nodes, found, glus)
    _list_experts(found, glus)
    found.sites = list(nodes.values())
    tables = find_tables(model.graph, {node: site.key for node, site in nodes.items() if site.role is Role.LM_HEAD})
    found.tables, found.held = list(tables.sites.values()), tables.held
    found.stored = {site.key: stored_in(node) for node, site in (tables.sites | nodes).items()}
    found.unmatched += tables.unmatched
    found.unmatched.sort(key=lambda u: (u.node, u.reason))
    return found


def require_glu(found: Identified, where: str) -> None:
    """Refuse a graph without any GLU.

    Raises:
        GraphError: there is none; the near misses are named.
    """
    if found.blocks:
        return
    misses = "; ".join(f"{u.node}: {u.reason}" for u in found.unmatched[:3])
    raise GraphError(
        "no GLU block was found: there is no act(gate) * up that feeds a MatMul with a constant weight"
        + (f" (nearest: {misses})" if misses else ""),
        where=where,
        remedy="activation spikes live at GLU down projections; use --allow-no-glu to quantize this graph all the same",
    )


def _assign_glus(
    model: ir.Model, nodes: dict[ir.Node, Site], adapters: set[ir.Node], found: Identified, glus: _Glus
) -> None:
    downs = _behind_downs(node for node in nodes if node not in adapters)
    explained: set[ir.Node] = set()
    for match in find_glus(model):
        explained.add(match.product)
        down = downs.get(match.product, [])
        gate, up = projection(match.gate, nodes), projection(match.up, nodes)
        if down and gate is not None and up is not None and not _gates_a_side_branch(match, gate, up):
            _record(match, down, gate, up, nodes, found)
            glus.reads.append((origin_of(gate.inputs[0]), [*dict.fromkeys((gate, up)), *down]))
        elif (experts := stacked_glu(match, glus.stacked)) is not None:
            _record_stacked(match, experts, found, glus)
        elif gate is not None and _weighs(match, nodes[gate]):
            _set_role(nodes, gate, Role.ROUTER)
        elif down or (gate is not None and up is not None):  # a lone sigmoid gate elsewhere is no near miss
            miss = near_miss(match, bool(down), gate is not None, up is not None)
            found.unmatched.append(Unmatched(match.product.name or "", miss))
    for product, users in downs.items():
        if product not in explained and (reason := unknown_gate(product, nodes)):
            found.unmatched.append(Unmatched(users[0].name or "", reason))


def _behind_downs(nodes: Iterable[ir.Node]) -> dict[ir.Node, list[ir.Node]]:
    """The products that sites read, seen through moves of data, constant factors and norms, with those sites."""
    downs: dict[ir.Node, list[ir.Node]] = {}
    for node in nodes:
        value, left = node.inputs[0], 64
        while value is not None and (producer := value.producer()) is not None and left:
            if producer.op_type == "Mul":
                downs.setdefault(producer, []).append(node)
            value, left = passed_on(producer), left - 1
    return downs


def _gates_a_side_branch(match: GluMatch, gate: ir.Node, up: ir.Node) -> bool:
    """Whether a plain sigmoid gate was computed from something else than what it gates, as squeeze-and-excite does."""
    return match.kind == "glu" and scaled_from(gate.inputs[0]) is not scaled_from(up.inputs[0])


def _record(
    match: GluMatch, downs: list[ir.Node], gate: ir.Node, up: ir.Node, nodes: dict[ir.Node, Site], found: Identified
) -> None:
    roles = dict.fromkeys(downs, Role.GLU_DOWN)
    roles |= {gate: Role.GLU_GATE_UP} if gate is up else {gate: Role.GLU_GATE, up: Role.GLU_UP}
    for node, role in roles.items():
        site = nodes[node]
        nodes[node] = replace(site, role=role if site.expert is None else role.of_expert)
    down = nodes[downs[0]]
    found.blocks.append(
        GluBlock(match.kind, match.product.name or "", nodes[gate].key, nodes[up].key, down.key, down.layer)
    )


def _record_stacked(match: GluMatch, glu: StackedGlu, found: Identified, glus: _Glus) -> None:
    with_roles(glu, glus.stacked)
    gate, up, down = (glus.stacked[node] for node in (glu.gate, glu.up, glu.down))
    found.blocks.append(GluBlock(match.kind, match.product.name or "", gate.key, up.key, down.key, down.layer))
    glus.reads.append((origin_of(gate.input), [*dict.fromkeys((glu.gate, glu.up)), glu.down]))


def _record_fused(found: Identified, glus: _Glus) -> None:
    """Every mixture in one operator whose experts are GLUs counts as one, as a stack does, in the graph's order."""
    gated = [node for node, fused in glus.fused.items() if fused.kind]
    for node in gated:
        fused = glus.fused[node]
        found.blocks.append(GluBlock(fused.kind, fused.node, fused.key, fused.key, fused.key, fused.layer))
        glus.reads.append((origin_of(node.inputs[0]), [node]))
    if gated:
        place = {node: index for index, node in enumerate(glus.order)}
        order = sorted(range(len(glus.reads)), key=lambda index: place[glus.reads[index][1][-1]])
        found.blocks = [found.blocks[index] for index in order]
        glus.reads = [glus.reads[index] for index in order]


def _weighs(match: GluMatch, gate: Site) -> bool:
    """Whether a sigmoid is one number a token, which weighs a whole branch (a shared expert) and gates nothing."""
    return match.kind == "glu" and gate.shape[1] == 1


def _assign_attention(graph: ir.Graph, nodes: dict[ir.Node, Site], adapters: set[ir.Node], found: Identified) -> None:
    sites = set(nodes) - adapters
    for core in find_cores(graph):
        branches = {
            role: sites_behind(value, sites, adapters)
            for role, value in ((Role.ATTN_Q, core.query), (Role.ATTN_K, core.key), (Role.ATTN_V, core.value))
        }
        if (output := site_after(core.node, sites)) is not None:
            _set_role(nodes, output, Role.ATTN_O)
        packed = core.key is None or branches[Role.ATTN_Q] == branches[Role.ATTN_K]
        for role, behind in branches.items():
            if len(behind) == 1:
                _set_role(nodes, behind[0], Role.ATTN_QKV if packed else role)
            elif len(behind) > 1:
                names = ", ".join(sorted(node.name or "" for node in behind))
                reason = f"{role.value} comes from several projections ({names}); they keep role 'other'"
                found.unmatched.append(Unmatched(core.node.name or "", reason))


def _set_role(nodes: dict[ir.Node, Site], node: ir.Node, role: Role) -> None:
    if nodes[node].role is Role.OTHER:
        nodes[node] = replace(nodes[node], role=role)


def _assign_ends(model: ir.Model, nodes: dict[ir.Node, Site]) -> None:
    """lm_head is the site whose output is the logits, but for scaling; a router's output is ranked."""
    name = find_logits(model).output
    logits = next((v for v in model.graph.outputs if v.name == name), None)
    for node in [node for node, site in nodes.items() if site.role is Role.OTHER]:
        if logits is not None and _reaches(node, logits, frozenset(), _TO_OUTPUT):
            _set_role(nodes, node, Role.LM_HEAD)
        elif _reaches(node, None, _RANKS, _TO_TOPK):
            _set_role(nodes, node, Role.ROUTER)


def _reaches(start: ir.Node, target: ir.Value | None, ends: frozenset[str], through: frozenset[str]) -> bool:
    queue, seen = deque(start.outputs[:1]), {start}
    while queue and len(seen) < 24:
        value = queue.popleft()
        if value is target:
            return True
        for node in users_of(value):
            # A mixture of experts in one operator ranks itself what its router gives.
            if ends and (node.op_type in ends or (is_fused(node) and value in node.inputs[1:2])):
                return True
            if node in seen or node.op_type not in through:
                continue
            if not ends and sum(weight_of(v) is None and scalar_of(v) is None for v in node.inputs if v) > 1:
                continue  # the sum or product of two activations is not just a scaled output
            seen.add(node)
            queue.extend(node.outputs[:1])
    return False


def _number_layers(nodes: dict[ir.Node, Site], found: Identified, glus: _Glus) -> None:
    """Number layers where names state none, and experts."""
    unnamed = all(block.layer is None for block in found.blocks)
    order = [node for node in glus.order if node not in nodes or nodes[node].role is not Role.LM_HEAD]
    if glus.reads:
        layers, places = layers_of(order, [(origin, members[-1]) for origin, members in glus.reads])
        # A tool may have renamed some nodes of a layer: then the others tell its number.
        stated = {place: block.layer for place, block in zip(places, found.blocks, strict=True)}
        for node, place in layers.items():
            layer = place if unnamed else stated.get(place)
            if node in nodes:
                if unnamed or nodes[node].layer is None:
                    nodes[node] = replace(nodes[node], layer=layer)
            elif unnamed and node in glus.fused:
                glus.fused[node] = replace(glus.fused[node], layer=layer)
            elif unnamed:
                glus.stacked[node] = replace(glus.stacked[node], layer=layer)
        if unnamed:
            found.blocks = [replace(block, layer=place) for block, place in zip(found.blocks, places, strict=True)]
    number_experts(nodes, [glu for glu in glus.reads if all(node in nodes for node in glu[1])])


def _list_experts(found: Identified, glus: _Glus) -> None:
    known = {product.node for product in glus.stacked.values()}
    found.unmatched = [u for u in found.unmatched if u.node not in known]
    found.unmatched += [product.unmatched for product in glus.stacked.values()]
    found.unmatched += [fused.unmatched for fused in glus.fused.values()]
