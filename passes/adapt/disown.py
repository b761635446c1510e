"""Take a graph that a plan was applied to before, and that holds no integers, as any other."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass
from spq_graph.passes.base.marks import ADDED


class Disown(CanonicalPass):
    """What was inserted then is the graph's own now, and a function that nothing calls is none of it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        ours = [node for node in model.graph.all_nodes() if ADDED in node.metadata_props]
        for node in ours:
            del node.metadata_props[ADDED]
        called = {node.op_identifier() for node in model.graph.all_nodes()}
        idle = [name for name in model.functions if name not in called]
        for name in idle:
            del model.functions[name]
        return ir.passes.PassResult(model, modified=bool(ours or idle))
