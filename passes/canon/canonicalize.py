"""Any graph in the form that the passes expect."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveInitializersFromInputsPass,
    TopologicalSortPass,
)

from spq_graph.passes.base.conditions import not_canonical, not_inlined, not_lifted, not_named, promise
from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.base.run import Pass, run
from spq_graph.passes.base.wellformed import check_nodes
from spq_graph.passes.canon.einsum import EinsumAsMatMul
from spq_graph.passes.canon.fold import FoldWeights
from spq_graph.passes.canon.lift_old import LiftOld
from spq_graph.passes.canon.unfuse import Unfuse
from spq_graph.terms.errors import GraphError
from spq_graph.terms.kernels import OPERATORS

FIRST_IR_WITH_FREE_INITIALIZERS = 4


class InlineFunctions(ir.passes.InPlacePass):
    """Write the bodies of model-local functions in the place of their calls, but for our operators'; drop the uncalled.

    Their bodies would hide the weight, and tell nobody what it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not model.functions:
            return ir.passes.PassResult(model, modified=False)
        inline = InlinePass(criteria=lambda function: function.domain != DOMAIN or function.name not in OPERATORS)
        try:
            modified = inline(model).modified
        except (ir.passes.InvariantError, ValueError, KeyError, RuntimeError, TypeError) as cause:
            first: BaseException = cause
            while first.__cause__ is not None:
                first = first.__cause__
            raise GraphError(
                f"a function of the model cannot be written out: {first}",
                where=model.graph.name or "",
                remedy="export the model again, without functions of its own or with those that its opset knows",
            ) from cause
        # What is left was called by nobody, and means nothing to a runtime either.
        uncalled = [known for known, function in model.functions.items() if function.domain != DOMAIN]
        for known in uncalled:
            del model.functions[known]
        # Who calls a function may leave out inputs that its body reads.
        check_nodes(model, model.graph.name or "")
        return ir.passes.PassResult(model, modified or bool(uncalled))

    def ensures(self, model: ir.Model) -> None:
        """No function is left but ours."""
        promise(not_inlined(model))


class LiftConstants(ir.passes.InPlacePass):
    """Turn every Constant node, whatever its size, into an initializer."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)

    def ensures(self, model: ir.Model) -> None:
        """No constant is a node."""
        promise(not_lifted(model))


class NameNodes(ir.passes.InPlacePass):
    """Give every node a name of its own: plans refer to nodes by name."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, name_nodes(model.graph, listed_names(model.graph)))

    def ensures(self, model: ir.Model) -> None:
        """Plans can refer to every node."""
        promise(not_named(model))


class Modernize(ir.passes.InPlacePass):
    """Bring in what inserted nodes and constants rely on: the domain "", and initializers that need not be inputs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        imports = model.graph.opset_imports
        long_name, old = "ai.onnx" in imports, model.ir_version < FIRST_IR_WITH_FREE_INITIALIZERS
        if long_name:
            imports.setdefault("", imports.pop("ai.onnx"))
        if old:
            model.ir_version = FIRST_IR_WITH_FREE_INITIALIZERS
        return ir.passes.PassResult(model, long_name or old)

    def ensures(self, model: ir.Model) -> None:
        """ONNX's own domain has its short name."""
        promise("ONNX's own domain has its long name" if "ai.onnx" in model.graph.opset_imports else None)


# In this order: folding sees no Constant nodes, what is written out is a product whose weight was folded, and whatever
# these leave is named.
CANON: tuple[type[Pass], ...] = (
    InlineFunctions,
    LiftOld,
    LiftConstants,
    RemoveInitializersFromInputsPass,
    TopologicalSortPass,
    EinsumAsMatMul,
    FoldWeights,
    Unfuse,
    NameNodes,
    Modernize,
)


class Canonicalize(ir.passes.InPlacePass):
    """Bring a graph into the form that the other passes expect: all of `CANON`, which keep its numbers.

    Model-local functions are inlined but for our own operators', graphs older than opset 13 lifted to it, Constant
    nodes lifted to initializers, initializers no longer listed as inputs (which would let a caller override them),
    nodes sorted, a linear layer left as Einsum is a MatMul, weights that nodes make of others are initializers of
    their own, what ONNX Runtime fused around weights is written out, every node gets a unique name, and ONNX's own
    domain has its short name.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, run(model, [step() for step in CANON]))

    def ensures(self, model: ir.Model) -> None:
        """What every pass on a canonical graph requires, and names that a plan can refer to."""
        promise(not_canonical(model) or not_named(model))


def listed_names(graph: ir.Graph) -> frozenset[str]:
    """Names of inputs, constants and results: runtimes list them beside the nodes, and each name once."""
    values = (*graph.inputs, *graph.initializers.values(), *graph.outputs)
    return frozenset(value.name for value in values if value.name)


def is_anothers(node: ir.Node, listed: Collection[str]) -> bool:
    """Whether a node's name is one of these, and not that of what it gives itself."""
    return node.name in listed and all(value.name != node.name for value in node.outputs)


def name_nodes(nodes: Iterable[ir.Node], listed: Collection[str] = ()) -> bool:
    """Give every node a name of its own; the first to have a name keeps it. Returns whether any was changed.

    Args:
        nodes: the nodes.
        listed: names of other things, which a node may have only where it gives that thing.
    """
    nodes = list(nodes)
    given = {node.name for node in nodes if node.name and not is_anothers(node, listed)}
    reserved, taken = {*given, *listed}, set[str]()
    copies: dict[str, int] = {}  # by name, the last number that was given out: many nodes may share one name
    modified = False
    for index, node in enumerate(nodes):
        base = name = node.name or f"{node.op_type}_{index}"
        keeps = not is_anothers(node, listed)
        while name in taken or (name in reserved and not (keeps and name == node.name)):
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
