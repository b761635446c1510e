"""What a model said of a text, kept for whoever asks again while other models are held against it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from spq_graph.runtime.measures.asked import Stream
from spq_graph.runtime.sessions.feeds import Array
from spq_graph.runtime.sessions.segmented import Batch
from spq_graph.runtime.sessions.staged import Held, key_of


class Said:
    """Logits of one model by batch, to the bit as it gave them: in memory, and beyond that in a file without a name.

    A batch for which there is no room is run again each time.

    Args:
        folder: where a file may be written; None for nowhere.
    """

    def __init__(self, folder: Path | None) -> None:
        self._held = Held(folder)
        self._known: dict[tuple[bytes, int], Array] = {}

    def stream(self, model: Stream, batches: Sequence[Batch], columns: int | None = None) -> Iterator[Array]:
        """As `model.stream`; every call must be of the same model. What is yielded must not be changed."""
        parts = [
            [(key_of(*batch), start) for start in range(0, batch[0].shape[1], columns or batch[0].shape[1])]
            for batch in batches
        ]
        to_run = [any(part not in self._known for part in of_batch) for of_batch in parts]
        run = model.stream([batch for batch, runs in zip(batches, to_run, strict=True) if runs], columns)
        for of_batch, runs in zip(parts, to_run, strict=True):
            for part in of_batch:
                if not runs:
                    yield self._known[part]
                    continue
                logits = next(run)
                if part not in self._known and (kept := self._held.keep(logits)) is not None:
                    self._known[part] = kept
                yield logits
                del logits  # what comes next is as large
