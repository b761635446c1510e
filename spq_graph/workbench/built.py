"""A plan applied, as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spq_graph.passes.files.save import DATA_SUFFIX


@dataclass(slots=True)
class Built:
    """One model with a plan applied, as a file."""

    path: Path
    bytes: int
    opset: int

    def discard(self) -> None:
        """Remove it: it is intermediate."""
        self.path.unlink(missing_ok=True)
        self.path.with_name(self.path.name + DATA_SUFFIX).unlink(missing_ok=True)
