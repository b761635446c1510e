"""Whether targets can hold a graph at all, before anything that takes long: its opset, and every operator."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from spq_graph.passes.canon.lift_old import refuse_old
from spq_graph.passes.check.probe import operators_of, probe_of
from spq_graph.passes.check.target import refuse_foreign
from spq_graph.passes.check.ways import endless_ways
from spq_graph.runtime.proof.holds import lacking, newest_opset, runtime_of
from spq_graph.terms.errors import GraphError
from spq_graph.terms.targets import PROFILES, Profile


def refuse_unheld(model: ir.Model, targets: Collection[str], where: str) -> None:
    """Hold a graph against the CPU, which measures everything, and the targets that it is for.

    Args:
        model: the graph, canonical.
        targets: that it is to be compiled for, by name.
        where: the graph, as it was named.

    Raises:
        GraphError: the opset, or an operator, is one that a target does not have.
    """
    refuse_old(model, where)
    for profile in (PROFILES[name] for name in dict.fromkeys(("cpu", *targets))):
        refuse_unrun(model, profile, where)
        if profile.name in targets:
            refuse_foreign(model, profile, where)


def refuse_unrun(model: ir.Model, profile: Profile, where: str) -> None:
    """Hold a graph against what the runtime of a target has, whatever may be written for that target.

    Raises:
        GraphError: the opset, or an operator, is one that it does not have, or it would not come back from it.
    """
    _refuse_newer(model, profile, where)
    if missing := lacking(profile, probe_of(model)):
        counts = operators_of(model)
        raise _refusal(profile, {name: counts.get(name, 1) for name in sorted(missing)}, where)
    if profile.runtime == "openvino" and (product := endless_ways(model)) is not None:
        raise GraphError(
            f"OpenVINO does not finish compiling this graph: it follows every way back from the product {product}, and "
            "there are more than a million",
            where=where,
            remedy="use target cpu, or export the model without the nodes that read one value twice, over and over",
        )


def _refuse_newer(model: ir.Model, profile: Profile, where: str) -> None:
    newest, opset = newest_opset(profile), model.graph.opset_imports.get("", 1)
    if newest is not None and opset > newest:
        raise GraphError(
            f"the graph has opset {opset}, and {runtime_of(profile)} takes {newest} at most",
            where=where,
            remedy=f"export the model again with opset {newest} or earlier, as `spq-graph export` does",
        )


def _refusal(profile: Profile, missing: dict[str, int], where: str) -> GraphError:
    if profile.runtime == "onnxruntime":
        names = ", ".join(name.replace("::", ":") for name in missing)
        return GraphError(
            f"{runtime_of(profile)} has no operator {names}, so this model cannot be run",
            where=where,
            remedy="`spq-graph inspect` shows what is in it; to quantize it, its operators must run here",
        )
    what = ", ".join(f"{count} {name}" for name, count in missing.items())
    return GraphError(
        f"target '{profile.name}' has no operators of this graph: {what}, as {profile.device} says",
        where=where,
        remedy="use target cpu, or export the model in ONNX's own operators, as `spq-graph export` does",
    )
