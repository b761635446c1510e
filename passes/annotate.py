"""Write a view of the plan into the file, for Netron and other readers. The plan stays the truth.

Nodes and the model carry it as `metadata_props`, which every serialization of ONNX keeps; docs/annotations.md lists the
keys.
"""

from __future__ import annotations

import onnx_ir as ir

from spq_graph import __version__
from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.passes.base.conditions import NamedPass, promise
from spq_graph.passes.base.marks import PREFIX
from spq_graph.views import words


class Annotate(NamedPass):
    """Note key, role, precision, reason and spike at every site, and the plan's digest at the model."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes, peels, scales = {node.name: node for node in model.graph}, self.plan.peels, self.plan.scales
        for site in self.plan.sites:
            node = nodes.get(site.node)
            if node is not None:
                notes = _notes(site)
                if site.precision.takes_branch and (peel := peels.get(site.input)) is not None:
                    notes["peeled"] = " ".join(map(str, peel.channels))
                if (scale := scales.get(site.input)) is not None:
                    notes["smoothed"] = scale.tensor
                node.metadata_props.update({f"{PREFIX}{name}": text for name, text in notes.items()})
        if self.plan.prefix is not None:
            model.metadata_props[f"{PREFIX}prefix"] = " ".join(map(str, self.plan.prefix.tokens))
        model.metadata_props.update({f"{PREFIX}version": __version__, f"{PREFIX}plan": self.plan.digest})
        model.producer_name, model.producer_version = "spq-graph", __version__
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Every site of the plan says its key."""
        noted = {node.name: node.metadata_props.get(f"{PREFIX}site") for node in model.graph}
        silent = (site.key for site in self.plan.sites if noted.get(site.node) != site.key)
        promise(next((f"no node says that it is {key}" for key in silent), None))


def _notes(site: SitePlan) -> dict[str, str]:
    """What a node says of its site. Control characters in a token are spelled out."""
    seen = site.evidence
    notes = {"site": site.key, "role": site.role.value, "precision": site.precision.value, "reason": site.reason.value}
    if seen.ratio is not None:
        notes["ratio"] = f"{seen.ratio:g}"
    if seen.token is not None:
        notes["token"] = words.token(seen)
    if seen.position is not None:
        notes["position"] = str(seen.position)
    return notes
