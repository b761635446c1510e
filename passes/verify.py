"""Verify: the graph equals the plan, Q and DQ come in pairs, and nothing else changed."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from spq_graph.errors import CheckError
from spq_graph.passes.editor import ADDED
from spq_graph.plan import Plan, SitePlan
from spq_graph.recipe import Precision


def outline(model: ir.Model) -> list[tuple[str, str]]:
    """Name and operator of every node that no pass of ours added, in order."""
    return [(node.name or "", node.op_type) for node in model.graph if ADDED not in node.metadata_props]


class VerifyPlan(ir.passes.InPlacePass):
    """Check a model against its plan; changes nothing.

    Args:
        plan: what should be there.
        before: `outline` of the model before the plan was applied.

    Calling it raises CheckError, naming the sites where graph and plan differ.
    """

    def __init__(self, plan: Plan, before: list[tuple[str, str]]) -> None:
        super().__init__()
        self.plan = plan
        self.before = before

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = {node.name: node for node in model.graph}
        wrong = [text for site in self.plan.sites if (text := _differs(nodes.get(site.node), site))]
        wrong += _unpaired(model.graph)
        wrong += _changed(self.before, outline(model), {site.node for site in self.plan.sites})
        if wrong:
            raise CheckError("the graph is not what the plan says: " + "; ".join(wrong[:5]), remedy="please report this")
        return ir.passes.PassResult(model, modified=False)


def _differs(node: ir.Node | None, site: SitePlan) -> str | None:
    if node is None:
        return f"{site.key}: its node {site.node} is gone"
    found = precision_of(node)
    if site.precision.bits is not None:
        return None if found is Precision.INT8 else f"{site.key}: planned {site.precision}, found {found}"
    if site.precision is Precision.W8A16:
        return None if found is Precision.W8A16 else f"{site.key}: planned w8a16, found {found}"
    return f"{site.key}: planned {site.precision}, found {found}" if found in (Precision.INT8, Precision.W8A16) else None


def precision_of(node: ir.Node) -> Precision:
    """The precision that a product has in the file: INT8 for any integer container."""
    if node.op_type == "MatMulNBits":
        return Precision.W8A16
    producers = [v.producer() if v is not None else None for v in node.inputs[:2]]
    if all(p is not None and p.op_type == "DequantizeLinear" for p in producers):
        return Precision.INT8
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    source = weight
    while source is not None and (p := source.producer()) is not None and p.op_type in ("Cast", "Transpose", "Identity"):
        source = p.inputs[0]
    dtype = source.dtype if source is not None else None
    return {ir.DataType.FLOAT16: Precision.FP16, ir.DataType.BFLOAT16: Precision.BF16}.get(
        dtype or ir.DataType.FLOAT, Precision.FP32
    )


def _unpaired(graph: Iterable[ir.Node]) -> list[str]:
    wrong = []
    for node in graph:
        if node.op_type == "QuantizeLinear":
            users = {use.node.op_type for use in node.outputs[0].uses()}
            if users != {"DequantizeLinear"}:
                wrong.append(f"{node.name} feeds {sorted(users) or 'nothing'} instead of DequantizeLinear")
    return wrong


def _changed(before: list[tuple[str, str]], after: list[tuple[str, str]], sites: set[str]) -> list[str]:
    """Nodes outside of the sites that came, went or moved."""
    kept = {name for name, _ in after}
    # A constant's Transpose or Cast goes with the operand that it led to.
    old = [(name, op) for name, op in before if name not in sites and (name in kept or op not in _MAY_GO)]
    new = [(name, op) for name, op in after if name not in sites]
    return [] if old == new else [f"nodes outside of the plan changed: {sorted(set(old) ^ set(new))[:3]}"]


_MAY_GO = frozenset({"Transpose", "Cast", "Identity"})
