"""Any graph in the form that the passes expect."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    TopologicalSortPass,
)

from spq_graph.passes.base.conditions import not_canonical, repeated_name
from spq_graph.passes.base.marks import DOMAIN, OP
from spq_graph.passes.canon.einsum import EinsumAsMatMul
from spq_graph.passes.canon.fold import FoldWeights
from spq_graph.passes.canon.unfuse import Unfuse

FIRST_IR_WITH_FREE_INITIALIZERS = 4


class LiftConstants(ir.passes.InPlacePass):
    """Turn every Constant node, whatever its size, into an initializer."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


# In this order: folding sees no Constant nodes, and what is written out is a product whose weight was folded.
CANON: tuple[type[ir.passes.InPlacePass], ...] = (
    LiftConstants,
    RemoveInitializersFromInputsPass,
    TopologicalSortPass,
    EinsumAsMatMul,
    FoldWeights,
    Unfuse,
)


class Canonicalize(ir.passes.InPlacePass):
    """Bring a graph into the form that the other passes expect.

    Model-local functions are inlined but for our own operator's, Constant nodes lifted to initializers, initializers no
    longer listed as inputs (which would let a caller override them), nodes sorted, a linear layer left as Einsum is a
    MatMul, weights that nodes make of others are initializers of their own, what ONNX Runtime fused around weights is
    written out, ONNX's own domain has its short name, and every node gets a unique name: plans refer to nodes by name.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = bool(model.functions) and InlinePass(criteria=_not_our_operator)(model).modified
        for step in CANON:
            modified |= step()(model).modified
        modified |= name_nodes(model.graph)
        modified |= _modernize(model)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """What every pass on a canonical graph requires, and names that a plan can refer to."""
        text, name = not_canonical(model), repeated_name(model)
        if text is not None or name is not None:
            raise ir.passes.PostconditionError(text or f"several nodes are called '{name}'")


def _not_our_operator(function: ir.Function) -> bool:
    """Our operator's function stays a call: its body would hide the weight, and tell nobody that it is FP8."""
    return (function.domain, function.name) != (DOMAIN, OP)


def _modernize(model: ir.Model) -> bool:
    """What inserted nodes and constants rely on: the domain "", and initializers that need not be inputs."""
    imports = model.graph.opset_imports
    long_name, old = "ai.onnx" in imports, model.ir_version < FIRST_IR_WITH_FREE_INITIALIZERS
    if long_name:
        imports.setdefault("", imports.pop("ai.onnx"))
    if old:
        model.ir_version = FIRST_IR_WITH_FREE_INITIALIZERS
    return long_name or old


def name_nodes(nodes: Iterable[ir.Node]) -> bool:
    """Give every node a name of its own; the first to have a name keeps it. Returns whether any was changed."""
    nodes = list(nodes)
    given = {node.name for node in nodes if node.name}
    taken: set[str] = set()
    copies: dict[str, int] = {}  # by name, the last number that was given out: many nodes may share one name
    modified = False
    for index, node in enumerate(nodes):
        base = name = node.name or f"{node.op_type}_{index}"
        while name in taken or (name in given and name != node.name):
            copies[base] = copies.get(base, 0) + 1
            name = f"{base}_{copies[base]}"
        taken.add(name)
        if node.name != name:
            node.name, modified = name, True
    return modified


def strip_exporter_noise(model: ir.Model) -> None:
    """Drop metadata that carries local paths or repeats the exporter's internals."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        for key in [k for k in node.metadata_props if "stack_trace" in k or "fx_node" in k or "class_hierarchy" in k]:
            del node.metadata_props[key]
