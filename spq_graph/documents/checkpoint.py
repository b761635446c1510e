"""What a calibration has measured so far, kept beside its output so that the same command can go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from spq_graph.documents.leftovers import sweep_parts
from spq_graph.documents.ranges import Ranges, json_file
from spq_graph.terms.errors import DataError

SECONDS = 10.0


@dataclass(slots=True)
class Checkpoint:
    """Ranges of a part of the data, in files beside the ones that will hold them all.

    Args:
        out: the file that the finished ranges go to.
        every: seconds between two saves.
    """

    out: Path
    every: float = SECONDS
    _saved: float = field(default_factory=time.monotonic)

    def load(self, model_digest: str) -> Ranges | None:
        """What was measured of this model; None where there is nothing that can be used."""
        for path in sorted(self._files(), reverse=True):
            try:
                found = Ranges.load(path)
            except DataError:  # cut short by the same interrupt, or of another version
                continue
            if found.model_digest == model_digest:
                return found
        return None

    def save_if_due(self, ranges: Ranges) -> None:
        """Save once in a while."""
        if time.monotonic() - self._saved >= self.every:
            self.save(ranges)

    def save(self, ranges: Ranges) -> None:
        """Save under a name of its own first: whatever interrupts it, the one before is still whole."""
        old = list(self._files())
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{ranges.sequences:012d}.json"
        if path not in old:
            ranges.save(path)
            self._remove(old)
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Remove what was kept."""
        self._remove(list(self._files()))
        sweep_parts(self._folder)
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()

    @property
    def _folder(self) -> Path:
        out = json_file(self.out)
        return out.with_name(f"{out.stem}.partial")

    def _files(self) -> Iterator[Path]:
        return self._folder.glob("[0-9]*.json")

    @staticmethod
    def _remove(files: list[Path]) -> None:
        for path in files:
            path.unlink(missing_ok=True)
            path.with_suffix(".safetensors").unlink(missing_ok=True)
