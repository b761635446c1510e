"""What nearly is a GLU, and why it is none."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.base.values import users_of, weight_of
from spq_graph.passes.find.branches import projection, scaled_from
from spq_graph.passes.find.patterns import GluMatch, follows_from
from spq_graph.terms.site import Site


def near_miss(match: GluMatch, down: bool, gate: bool, up: bool) -> str:
    """Say what act(gate) * up lacks; `down`, `gate` and `up` tell which of its projections there are."""
    if not down:
        readers = sorted({node.op_type for node in users_of(match.product.outputs[0])})
        instead = f", but {', '.join(readers)}" if readers else ""
        return f"{match.kind} product feeds no MatMul with a constant weight{instead}"
    if gate and up:
        return f"{match.kind} product found, but its gate is computed from another value than what it gates"
    side = "up" if gate else "gate"
    return f"{match.kind} product found, but its {side} branch comes from no MatMul with a constant weight"


def unknown_gate(product: ir.Node, nodes: dict[ir.Node, Site]) -> str | None:
    """Say why act(gate) * up was not taken for a GLU; None for any other product."""
    one, other = product.inputs
    if weight_of(one) is not None or weight_of(other) is not None or _one_branch(one, other):
        return None
    for gate, up in ((one, other), (other, one)):
        if projection(up, nodes) is None:
            continue
        if projection(gate, nodes) is not None:
            return "looks like a GLU, but neither branch has an activation"
        if chain := _chain_to_projection(gate, nodes):
            return f"looks like a GLU, but {chain} is not a known gate activation"
    return None


def _one_branch(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both operands are computed from one value, as in x/2 * (1 + tanh(..x..)): an activation, no gate."""
    values = [scaled_from(v) for v in (one, other)]
    return any(a is not None and b is not None and follows_from(a, b, 12) for a, b in (values, values[::-1]))


def _chain_to_projection(value: ir.Value | None, nodes: dict[ir.Node, Site], depth: int = 4) -> str:
    """The operators between a value and the projection it comes from, by their first operands; empty for none."""
    chain: list[str] = []
    while value is not None and (node := value.producer()) is not None and node.inputs and len(chain) < depth:
        chain.append(f"{node.op_type} ('{node.name}')")
        value = node.inputs[0]
        if projection(value, nodes) is not None:
            return ", ".join(chain)
    return ""
