"""A model's graph, as every verb begins with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spq_graph.passes.adapt.prepared import Prepared, prepared
from spq_graph.passes.check.functions import refuse_other_functions
from spq_graph.passes.find.identify import Identified


@dataclass(frozen=True, slots=True)
class Looked:
    """A model's graph, read once, and what was found in it."""

    prepared: Prepared
    found: Identified


def read_graph(path: Path) -> Prepared:
    """The graph of a file, for whoever runs or quantizes it.

    Raises:
        SourceError, GraphError: as `prepared`, or a function for one of our operators is not ours.
    """
    read = prepared(path)
    refuse_other_functions(read.graph, str(path))
    return read
