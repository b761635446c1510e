"""What to say of a model that is not finite, or of float16 that is too small for it: for whoever runs one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx_ir as ir

from spq_graph.passes.find.flow import Harm, held_in_half, in_half
from spq_graph.terms.errors import ActivationError
from spq_graph.terms.site import Site
from spq_graph.terms.targets import LARGEST_HALF
from spq_graph.workbench.faults import AGAIN, HALF, WIDER, Fault, Places


def too_large(
    model: ir.Model, sites: Iterable[Site], sizes: Mapping[str, float], origin: str
) -> ActivationError | None:
    """What to say of float16 values that are larger than float16 holds; None where none is.

    ONNX Runtime's CPU provider computes in float32 between the nodes of a float16 graph, so that such a graph runs
    there, and neither on another provider nor where anything is inserted into it.

    Args:
        model: the graph.
        sites: its sites.
        sizes: largest absolute value of float16 values, by name, in the graph's order.
        origin: of the model.
    """
    beyond = {name: size for name, size in sizes.items() if size > LARGEST_HALF}
    if not beyond:
        return None
    places = Places.of(model, sites)
    makers = {v.name: node for node in model.graph for v in node.outputs}
    first, largest = next(iter(beyond)), max(beyond, key=lambda name: (name in places.read, beyond[name]))
    told = [f"{places.of_value(first, makers.get(first))} reaches {beyond[first]:,.0f}"]
    if largest != first and largest in places.read:
        told.append(f"the input of {places.read[largest]} {beyond[largest]:,.0f}")
    return ActivationError(
        f"{HALF}, and {', '.join(told)}: ONNX Runtime's CPU provider hides it, for it computes in float32",
        where=origin,
        remedy=WIDER,
    )


def sized(model: ir.Model, sites: Iterable[Site]) -> dict[str, bool]:
    """The float16 values whose size is to be looked at, in the graph's order, and whether negative ones count too."""
    half, every, inputs = held_in_half(model.graph), in_half(model.graph), {site.input for site in sites}
    return {
        value.name or "": half.get(value, Harm.ANY) is Harm.ANY
        for node in model.graph
        for value in node.outputs
        if value in half or (value.name in inputs and value in every)
    }


def not_finite(on: str, origin: str, fault: Fault | None) -> ActivationError:
    """What to raise of something that is not finite.

    Args:
        on: what it was run on, in words.
        origin: of the model.
        fault: the first place where it shows; None where it was not found.
    """
    what = f"an activation is NaN or infinite on {on}"
    if fault is None:
        return ActivationError(what, where=origin, remedy=AGAIN)
    return ActivationError(f"{what}: {fault.what}", where=f"{origin}, {fault.where}", remedy=fault.remedy)
