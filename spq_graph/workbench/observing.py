"""A graph that tells of the input of every site, as calibration runs it."""

from __future__ import annotations

from pathlib import Path

from spq_graph.documents.changes import Prefix
from spq_graph.passes.adapt.prepared import Prepared
from spq_graph.passes.base.run import run
from spq_graph.passes.changes.prefix import PrependPrefix
from spq_graph.passes.observe import FINITE_CHECK, Observe
from spq_graph.passes.pieces.split import split
from spq_graph.runtime.measures.calibrate import Observed
from spq_graph.terms.site import Site
from spq_graph.terms.targets import PROFILES
from spq_graph.workbench.not_finite import sized


def observed(
    prepared: Prepared, sites: list[Site], model: Path, digest: str, memory: int | None, prefix: Prefix | None = None
) -> Observed:
    """A copy of a graph with reductions over every site's input in it.

    Args:
        prepared: the source graph.
        sites: found in it.
        model: the file that it was read from.
        digest: of the file.
        memory: bytes that the weights in a session may take; None for the default of `pieces.split`.
        prefix: what every sequence follows; nothing of it is observed.
    """
    # As it runs on the CPU: nothing is observed inside of a fused attention, which takes less time and memory.
    graph = prepared.adapted(PROFILES["cpu"])
    observe = Observe([site.input for site in sites], sized(graph, sites))
    run(graph, [PrependPrefix(prefix), observe])
    probes, sizes = ([(p.value, p.outputs) for p in some] for some in (observe.probes, observe.sizes))
    return Observed(split(graph, model, memory), probes, FINITE_CHECK, digest, sizes)
