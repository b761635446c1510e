"""Where a model is asked for the next token: behind every token of a text, or behind the last one of each window.

Some graphs give logits of the last token only, which is all that generation needs. What such a graph says of a text is
then one token a window: the window without its last token is run, and that token is what it should say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.measures.calibrate import batch_size, batches_without_padding
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids, Sequences

Stream: TypeAlias = Runner | SegmentedRunner
# Rows and columns of a batch.
Places: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
# Of one batch: several models' are at hand at a time, and in float32 these take 400 MB.
MOST_LOGITS = 100 << 20
# Of those that are asked for at a time.
LOGITS_BYTES = 100 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A batch, and where what a model says of it is judged.

    Attributes:
        ids: what is run, int64 [batch, length]; mask: 0 for padding.
        at: rows and columns of the logits that are judged; column -1 is the last one that the graph gives.
        targets: the tokens that follow there, int64 [places]; all 0 where none does.
        columns: of which tokens of each row the logits are; `at` counts from the first of them. None for all.
    """

    ids: Ids
    mask: Ids
    at: Places
    targets: Ids
    columns: slice | None = None

    @property
    def unjudged(self) -> Places:
        """The tokens that are run and not judged, the last of each row among them; none where only that is given."""
        rest = self.mask[:, self.columns or slice(None)].astype(bool)
        if len(self.targets) and self.at[1].min() < 0:
            rest[:] = False
        rest[self.at] = False
        rows, columns = np.nonzero(rest)
        return rows, columns

    def first(self, places: int) -> Asked:
        """The same batch, judged in so many places at most."""
        rows, columns = self.at
        return replace(self, at=(rows[:places], columns[:places]), targets=self.targets[:places])

    def in_columns(self, step: int | None) -> Iterator[Asked]:
        """The same batch, of so many tokens of each row at a time; None for all at once."""
        if step is None:
            yield self
            return
        rows, columns = self.at
        for start in range(0, self.ids.shape[1], step):
            some = (columns >= start) & (columns < start + step)
            at = rows[some], columns[some] - start
            yield replace(self, at=at, targets=self.targets[some], columns=slice(start, start + step))

    def parts(self, size: int) -> Iterator[tuple[Places, Ids]]:
        """So many places at a time, and their targets."""
        rows, columns = self.at
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            yield (rows[part], columns[part]), self.targets[part]


def behind_every(ids: Ids, mask: Ids, prefix: int) -> Asked:
    """A batch that is judged behind every token that another follows."""
    rows, columns = np.nonzero(Sequences(ids, mask, prefix).predicted)
    return Asked(ids, mask, (rows, columns), ids[rows, columns + 1])


def behind_last(sequences: Sequences, size: tuple[int | None, int | None], *, judged: bool = True) -> Iterator[Asked]:
    """Batches of one length, without padding, that are judged behind their last token.

    Args:
        sequences: the text.
        size: how many rows and columns the graph insists on; None where they are free. What it cannot take is left out.
        judged: whether the last token of each row is kept back, to be what is predicted; otherwise whole rows are run.
    """
    columns = size[1]
    for rows in batches_without_padding(sequences, *size):
        run = rows[:, :-1] if judged else rows
        if run.shape[1] < max(sequences.prefix, 1) or columns not in (None, run.shape[1]):
            continue
        places = np.arange(len(run))
        targets = rows[:, -1] if judged else np.zeros_like(places)
        yield Asked(run, np.ones_like(run), (places, np.full_like(places, -1)), targets)


def asked(reference: Stream, models: Sequence[Stream], sequences: Sequences) -> list[Asked]:
    """A text in batches, to be judged where the reference and all models give logits."""
    streams = (reference, *models)
    if any(gives_last_only(stream) for stream in streams):
        columns = next((size for stream in streams if (size := stream.fixed_shape[1]) is not None), None)
        return list(behind_last(sequences, (reference.fixed_shape[0], columns)))
    rows = reference.fixed_shape[0] or min(batch_size(reference, sequences), _rows_of(reference, sequences))
    batches = sequences.batches(rows)
    return [behind_every(ids, mask, sequences.prefix) for ids, mask in batches]


def _rows_of(reference: Stream, sequences: Sequences) -> int:
    """So many rows as have no more logits than `MOST_LOGITS`; one in any case."""
    return max(1, MOST_LOGITS // ((reference.vocabulary or 1) * int(sequences.ids.shape[1])))


def columns_of(model: Stream, batches: Sequence[Asked]) -> int | None:
    """Of how many tokens of each row logits are asked for at a time; None for all, where that is not too much.

    Of every model as many stand side by side; with a vocabulary of 150,000, those of 2,048 tokens take 1.2 GB.
    """
    if any((batch.at[1] < 0).any() for batch in batches):  # of the last token alone
        return None
    rows, length = max((batch.ids.shape for batch in batches), key=math.prod, default=(1, 1))
    step = max(1, LOGITS_BYTES // (4 * (model.vocabulary or 1) * rows))
    return step if step < length else None


def gives_last_only(stream: Stream) -> bool:
    """Whether a model gives logits of the last token only, seen from what it says of two tokens; asked once.

    Where that would read all weights piece by piece, what the graph declares is believed.
    """
    if stream.last_only is None and isinstance(stream, SegmentedRunner) and stream.pieces > 1 and stream.declares_every:
        stream.last_only = False
    if stream.last_only is None:
        rows, columns = stream.fixed_shape
        ids = np.zeros((rows or 1, columns or 2), dtype=np.int64)
        (logits,) = stream.stream([(ids, np.ones_like(ids))])
        stream.last_only = logits.shape[1] < ids.shape[1]
    return stream.last_only
