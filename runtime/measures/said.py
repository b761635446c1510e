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
        self._known: dict[bytes, Array] = {}

    def stream(self, model: Stream, batches: Sequence[Batch]) -> Iterator[Array]:
        """As `model.stream`; every call must be of the same model. What is yielded must not be changed."""
        keys = [key_of(ids, mask) for ids, mask in batches]
        to_run = [key not in self._known for key in keys]
        run = model.stream([batch for batch, runs in zip(batches, to_run, strict=True) if runs])
        for key, runs in zip(keys, to_run, strict=True):
            if not runs:
                yield self._known[key]
                continue
            logits = next(run)
            if key not in self._known and (kept := self._held.keep(logits)) is not None:
                self._known[key] = kept
            yield logits
