"""What a worker says of itself before it is given any work."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from spq_graph.runtime.proof.health import instruction_sets
from spq_graph.workbench.environment import environment

# Of these another version may give other numbers, or understand another request.
DECIDES = ("spq-graph", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, slots=True)
class Introduced:
    """A process, as far as it matters to what it computes.

    Attributes:
        versions: by package, as reports have them.
        instructions: what the processor has of the instruction sets that products are made of.
        sees: whether it can read the place that the model is in.
    """

    versions: dict[str, str]
    instructions: tuple[str, ...]
    sees: bool


def introduce(place: Path) -> Introduced:
    """This process; `place` is where the model is to be read from."""
    return Introduced(environment(), tuple(instruction_sets()), os.access(place, os.R_OK))
