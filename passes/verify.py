"""The graph equals the plan, Q and DQ come in pairs, and nothing else changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import onnx_ir as ir

from spq_graph.errors import CheckError
from spq_graph.passes.compare import differs, precision_of
from spq_graph.passes.editor import ADDED
from spq_graph.passes.operator import DOMAIN, OP, fp8_matmul_function, is_fp8_matmul
from spq_graph.passes.values import weight_of
from spq_graph.plan import Plan
from spq_graph.recipe import Precision
from spq_graph.targets import Form

__all__ = ["Line", "VerifyPlan", "outline", "precision_of"]

_MAY_GO = frozenset({"Transpose", "Cast", "Identity"})  # a constant's, with the operand that it led to


class Line(NamedTuple):
    """What must not change of a node: its name, its operator and what it reads."""

    name: str
    op_type: str
    reads: tuple[str, ...]


def outline(model: ir.Model) -> list[Line]:
    """Every node that no pass of ours added, in order."""
    return [
        Line(node.name or "", node.op_type, tuple((v.name or "") if v is not None else "" for v in node.inputs))
        for node in model.graph
        if ADDED not in node.metadata_props
    ]


class VerifyPlan(ir.passes.InPlacePass):
    """Check a model against its plan; changes nothing.

    Args:
        plan: what should be there.
        before: `outline` of the model before the plan was applied.

    Calling it raises CheckError, naming the sites where graph and plan differ.
    """

    def __init__(self, plan: Plan, before: list[Line]) -> None:
        super().__init__()
        self.plan = plan
        self.before = before

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes, recipe = {node.name: node for node in model.graph}, self.plan.recipe
        wrong = [
            f"{site.key}: {text}" for site in self.plan.sites if (text := differs(nodes.get(site.node), site, recipe))
        ]
        names = {site.node for site in self.plan.sites}
        wrong += _unpaired(model.graph, recipe.profile.forms[Precision.INT8])
        wrong += _changed(self.before, outline(model), names)
        wrong += _strangers(model.graph, names)
        wrong += _differing_function(model, any(map(is_fp8_matmul, model.graph)))
        if wrong:
            raise CheckError(
                f"the graph is not what the plan says: {'; '.join(wrong[:5])}", remedy="please report this"
            )
        return ir.passes.PassResult(model, modified=False)


def _differing_function(model: ir.Model, calls: bool) -> list[str]:
    """Whether the operator's function is there, and as we write it, exactly where something calls it."""
    wanted = fp8_matmul_function(model.graph.opset_imports.get("", 1))
    found = model.functions.get(wanted.identifier())
    if (found is not None) is not calls:
        return [f"function {DOMAIN}::{OP} is {'missing' if calls else 'there, but nothing calls it'}"]
    if found is None or ir.to_proto(found) == ir.to_proto(wanted):
        return []
    return [f"function {DOMAIN}::{OP} is not ours"]


def _producer(value: ir.Value | None) -> ir.Node | None:
    return value.producer() if value is not None else None


def _unpaired(graph: Iterable[ir.Node], integer: Form) -> list[str]:
    wrong = []
    reader = "MatMulInteger" if integer is Form.MATMUL_INTEGER else "DequantizeLinear"
    for node in graph:
        if ADDED not in node.metadata_props:  # the graph's own are its own business
            continue
        if node.op_type == "QuantizeLinear":
            users = {use.node.op_type for use in node.outputs[0].uses()}
            if users != {reader}:
                wrong.append(f"{node.name} feeds {sorted(users) or 'nothing'} instead of {reader}")
        elif node.op_type == "DequantizeLinear" and weight_of(node.inputs[0]) is None:
            source = _producer(node.inputs[0])
            if source is None or source.op_type != "QuantizeLinear" or source.inputs[1:] != node.inputs[1:]:
                wrong.append(f"{node.name} does not undo a QuantizeLinear")
    return wrong


def _changed(before: list[Line], after: list[Line], sites: set[str]) -> list[str]:
    """Nodes outside of the sites that came, went, moved, or read something else."""
    kept = {line.name for line in after}
    old = [line for line in before if line.name not in sites and (line.name in kept or line.op_type not in _MAY_GO)]
    new = [line for line in after if line.name not in sites]
    if old == new:
        return []
    names = sorted({line.name for line in set(old) ^ set(new)}) or ["their order"]
    return [f"nodes outside of the plan changed: {', '.join(names[:3])}"]


def _strangers(graph: Iterable[ir.Node], sites: set[str]) -> list[str]:
    """Nodes that pass for inserted ones, but for no site of the plan."""
    return [
        f"{node.name} was inserted for {node.metadata_props[ADDED]!r}, which is no site"
        for node in graph
        if node.metadata_props.get(ADDED, next(iter(sites), "")) not in sites
    ][:3]
