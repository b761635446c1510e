"""Annotate: write a view of the plan into the file, for Netron and other readers. The plan stays the truth."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph import __version__
from spq_graph.plan import Plan

PREFIX = "spq_graph."


class Annotate(ir.passes.InPlacePass):
    """Note role, precision, reason and key at every site, and the plan's digest at the model."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = {node.name: node for node in model.graph}
        for site in self.plan.sites:
            node = nodes.get(site.node)
            if node is not None:
                node.metadata_props.update(
                    {
                        f"{PREFIX}site": site.key,
                        f"{PREFIX}role": site.role.value,
                        f"{PREFIX}precision": site.precision.value,
                        f"{PREFIX}reason": site.reason.value,
                    }
                )
        model.metadata_props.update({f"{PREFIX}version": __version__, f"{PREFIX}plan": self.plan.digest})
        model.producer_name, model.producer_version = "spq-graph", __version__
        return ir.passes.PassResult(model, modified=True)
