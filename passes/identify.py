"""Identify: every product with a constant weight becomes a Site with a role; the rest is listed with the reason."""

from __future__ import annotations

import ast
from collections import Counter, deque
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from spq_graph.errors import GraphError
from spq_graph.passes.attention import find_cores, site_after, sites_behind
from spq_graph.passes.graph import scalar_of, users_of, weight_of
from spq_graph.passes.patterns import ACTIVATIONS, GluMatch, find_glus
from spq_graph.sites import Role, Site, Unmatched, expert_of, layer_of

# Between a GLU's product and its down projection, and between a projection and the GLU.
_TO_DOWN = frozenset({"Cast", "Identity", "Reshape", "Dropout"})
_FROM_PROJECTION = frozenset({"Add", "Cast", "Identity", "Split", "Slice", "Gather", "Reshape", "Transpose", "Squeeze",
                              "Unsqueeze", "Dropout", "Clip", "Mul"})  # fmt: skip
_TO_OUTPUT = frozenset({"Cast", "Identity", "Mul", "Div", "Tanh", "Add", "Slice", "Reshape", "Gather", "Squeeze"})
_TO_TOPK = frozenset({"Softmax", "Sigmoid", "Add", "Sub", "Cast", "Identity", "Reshape", "Where", "Unsqueeze", "Squeeze"})
_OTHER_LINEAR = frozenset({"FusedMatMul", "Einsum", "Conv", "FusedGemm", "QMoE", "MoE"})


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
    """What was found in a graph."""

    sites: list[Site] = field(default_factory=list)
    blocks: list[GluBlock] = field(default_factory=list)
    unmatched: list[Unmatched] = field(default_factory=list)

    @property
    def by_key(self) -> dict[str, Site]:
        """Sites by key."""
        return {site.key: site for site in self.sites}


def identify(model: ir.Model) -> Identified:
    """Find every Site of the main graph and its role.

    The graph must have been through `Canonicalize`. Nothing is changed. Time is linear in the number of nodes.
    """
    found = Identified()
    nodes = _collect(model, found)
    _assign_glus(model, nodes, found)
    _assign_attention(model.graph, nodes, found)
    _assign_ends(model.graph, nodes)
    _number_layers(nodes, found)
    found.sites = list(nodes.values())
    found.unmatched.sort(key=lambda u: u.node)
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


def module_path(node: ir.Node) -> str | None:
    """The module that a node belongs to, as torch.onnx recorded it in the node's metadata."""
    recorded = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if not recorded:
        return None
    try:
        scopes = ast.literal_eval(recorded)
    except (ValueError, SyntaxError):
        return None
    # The last scope is the operation itself, the one before it the module that called it.
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 and scopes[-2] else None


def _collect(model: ir.Model, found: Identified) -> dict[ir.Node, Site]:
    candidates: dict[ir.Node, Site] = {}
    for node in model.graph:
        if node.op_type in ("MatMul", "Gemm") and node.domain in ("", "ai.onnx"):
            reason = _add_site(node, candidates)
            if reason:
                found.unmatched.append(Unmatched(node.name or "", reason))
        elif node.op_type in _OTHER_LINEAR and any(weight_of(v) for v in node.inputs[1:] if v is not None):
            found.unmatched.append(Unmatched(node.name or "", f"{node.op_type} is not handled; it stays as it is"))
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                found.unmatched += _inside_subgraphs(node, attribute)
    paths = Counter(site.key for site in candidates.values())
    for node, site in candidates.items():
        if paths[site.key] > 1:  # one module, several products: the node's name tells them apart
            candidates[node] = replace(site, key=f"{site.key}/{site.node}")
    return candidates


def _inside_subgraphs(node: ir.Node, attribute: ir.Attr) -> list[Unmatched]:
    graphs = [attribute.as_graph()] if attribute.type is ir.AttributeType.GRAPH else attribute.as_graphs()
    return [
        Unmatched(inner.name or f"{node.name}/{inner.op_type}", f"inside a subgraph of {node.op_type} '{node.name}'")
        for graph in graphs
        for inner in graph.all_nodes()
        if inner.op_type in ("MatMul", "Gemm")
    ]


def _add_site(node: ir.Node, candidates: dict[ir.Node, Site]) -> str | None:
    """Add the node's Site, or say why it is none; None too for a product of two activations."""
    weight, activation = weight_of(node.inputs[1]), node.inputs[0]
    if weight is None:
        if weight_of(activation) is not None:
            return "the constant is the first operand: not a linear layer"
        return None
    if activation is None or weight_of(activation) is not None:
        return "both operands are constants"
    if len(weight.shape) != 2:
        return f"the constant operand has rank {len(weight.shape)}: not a linear layer"
    shape = weight.shape
    if node.op_type == "Gemm":
        odd = [name for name, usual in (("alpha", 1.0), ("beta", 1.0)) if _attribute(node, name, usual) != usual]
        if _attribute(node, "transA", 0):
            odd.append("transA")
        if odd:
            return f"Gemm with unusual {', '.join(odd)}; it stays as it is"
        if _attribute(node, "transB", 0):
            shape = shape[::-1]
    key = module_path(node) or node.name or ""
    candidates[node] = Site(
        key=key,
        node=node.name or "",
        role=Role.OTHER,
        layer=layer_of(key),
        input=activation.name or "",
        weight=weight.initializer.name or "",
        shape=(shape[0], shape[1]),
        expert=expert_of(key),
    )
    return None


def _attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def _assign_glus(model: ir.Model, nodes: dict[ir.Node, Site], found: Identified) -> None:
    downs: dict[ir.Value, list[ir.Node]] = {}
    for node in nodes:
        if (product := _back_through(node.inputs[0], _TO_DOWN)) is not None:
            downs.setdefault(product, []).append(node)
    matched_products: set[ir.Node] = set()
    for match in find_glus(model):
        down = downs.get(match.product.outputs[0], [])
        gate, up = _projection(match.gate, nodes), _projection(match.up, nodes)
        reason = _near_miss(match, down, gate, up)
        matched_products.add(match.product)
        if reason is not None or gate is None or up is None:
            if down or (gate is not None and up is not None):  # a lone sigmoid gate elsewhere is no near miss
                found.unmatched.append(Unmatched(match.product.name or "", reason or ""))
            continue
        _record(match, down[0], gate, up, nodes, found)
    for product, users in downs.items():
        node = product.producer()
        if node is not None and node.op_type == "Mul" and node not in matched_products:
            reason = _unknown_gate(node, nodes)
            if reason:
                found.unmatched.append(Unmatched(users[0].name or "", reason))


def _record(
    match: GluMatch, down: ir.Node, gate: ir.Node, up: ir.Node, nodes: dict[ir.Node, Site], found: Identified
) -> None:
    roles = {down: Role.GLU_DOWN}
    roles |= {gate: Role.GLU_GATE_UP} if gate is up else {gate: Role.GLU_GATE, up: Role.GLU_UP}
    for node, role in roles.items():
        site = nodes[node]
        nodes[node] = replace(site, role=role if site.expert is None else role.of_expert)
    found.blocks.append(
        GluBlock(
            match.kind, match.product.name or "", nodes[gate].key, nodes[up].key, nodes[down].key, nodes[down].layer
        )
    )


def _near_miss(match: GluMatch, down: list[ir.Node], gate: ir.Node | None, up: ir.Node | None) -> str | None:
    if not down:
        return f"{match.kind} product feeds no MatMul with a constant weight"
    if gate is None or up is None:
        side = "gate" if gate is None else "up"
        return f"{match.kind} product found, but its {side} branch comes from no MatMul with a constant weight"
    return None


def _unknown_gate(product: ir.Node, nodes: dict[ir.Node, Site]) -> str | None:
    """Say why act(gate) * up was not taken for a GLU; None for any other product."""
    if any(v is None or v.const_value is not None for v in product.inputs):
        return None
    sides = [v.producer() for v in product.inputs if v is not None]
    for one, other in (sides, sides[::-1]):
        if one is None or other is None or _projection(other.outputs[0], nodes) is None:
            continue
        if one.op_type not in ACTIVATIONS | _FROM_PROJECTION and _projection(one.inputs[0], nodes) is not None:
            return f"looks like a GLU, but {one.op_type} ('{one.name}') is not a known gate activation"
    return None


def _back_through(value: ir.Value | None, ops: frozenset[str]) -> ir.Value | None:
    while value is not None and (node := value.producer()) is not None and node.op_type in ops:
        value = node.inputs[0]
    return value


def _projection(value: ir.Value | None, nodes: dict[ir.Node, Site], depth: int = 10) -> ir.Node | None:
    """The site that a GLU branch comes from, through bias, split, clip and moves of data."""
    while value is not None and depth:
        node = value.producer()
        if node is None or node in nodes:
            return node
        if node.op_type not in _FROM_PROJECTION:
            return None
        if node.op_type in ("Add", "Mul"):  # a bias or a scale, in either operand
            dynamic = [v for v in node.inputs if v is not None and weight_of(v) is None]
            if len(dynamic) != 1:
                return None
            value = dynamic[0]
        else:
            value = node.inputs[0]
        depth -= 1
    return None


def _assign_attention(graph: ir.Graph, nodes: dict[ir.Node, Site], found: Identified) -> None:
    sites = set(nodes)
    for core in find_cores(graph):
        branches = {
            Role.ATTN_Q: sites_behind(core.query, sites),
            Role.ATTN_K: sites_behind(core.key, sites),
            Role.ATTN_V: sites_behind(core.value, sites),
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


def _assign_ends(graph: ir.Graph, nodes: dict[ir.Node, Site]) -> None:
    """lm_head is the site whose output is the graph's, but for scaling; a router's output is ranked by TopK."""
    logits = next((v for v in graph.outputs if v.name == "logits"), graph.outputs[0])
    for node in nodes:
        if nodes[node].role is not Role.OTHER:
            continue
        if _reaches(node, logits, None, _TO_OUTPUT):
            _set_role(nodes, node, Role.LM_HEAD)
        elif _reaches(node, None, "TopK", _TO_TOPK):
            _set_role(nodes, node, Role.ROUTER)


def _reaches(start: ir.Node, target: ir.Value | None, op_type: str | None, through: frozenset[str]) -> bool:
    queue, seen = deque(start.outputs[:1]), {start}
    while queue and len(seen) < 24:
        value = queue.popleft()
        if value is target:
            return True
        for node in users_of(value):
            if op_type is not None and node.op_type == op_type:
                return True
            if node in seen or node.op_type not in through:
                continue
            if op_type is None and sum(weight_of(v) is None and scalar_of(v) is None for v in node.inputs if v) > 1:
                continue  # the sum or product of two activations is not just a scaled output
            seen.add(node)
            queue.extend(node.outputs[:1])
    return False


def _number_layers(nodes: dict[ir.Node, Site], found: Identified) -> None:
    """Where names state no layer, count the GLUs: everything up to one's down projection belongs to its layer."""
    if not found.blocks or any(block.layer is not None for block in found.blocks):
        return
    layer, last = 0, len(found.blocks)
    downs = {block.down for block in found.blocks}
    for node, site in nodes.items():
        if site.role is not Role.LM_HEAD and layer < last:
            nodes[node] = replace(site, layer=layer)
        layer += site.key in downs
    found.blocks = [replace(block, layer=index) for index, block in enumerate(found.blocks)]
