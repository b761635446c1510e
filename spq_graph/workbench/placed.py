"""A model as the workers of a cluster find it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spq_graph.terms.errors import SourceError


@dataclass(frozen=True, slots=True)
class Placed:
    """A model at a place that all machines share.

    Attributes:
        path: the .onnx file.
        digest: of the file and its weights.
        memory: bytes that the weights in a session may take; None for a default.
    """

    path: Path
    digest: str
    memory: int | None

    def refuse_other(self, digest: str, worker: str) -> None:
        """Refuse what lies at the path on a worker, where its digest is another.

        Raises:
            SourceError: naming the worker.
        """
        if digest != self.digest:
            raise SourceError(
                "another model lies there on this worker than where the command was given",
                where=f"{worker}, {self.path}",
                remedy="let that path name the same file on all machines",
            )
