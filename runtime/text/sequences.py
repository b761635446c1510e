"""What calibration and evaluation run on, cut from text, JSON lists or arrays of ids.

A row is what the tokenizer prepends (BOS where it does, or on request) and then text, `window` tokens in all, so it
never exceeds the length the model was made for. Every token of the text is predicted exactly once: behind a prefix
all of a row's text is; without one a row begins with the last token of the row before, as context alone, and only
the first token of a document, which has no context, is never predicted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from spq_graph.terms.errors import DataError, UsageError

Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sequences:
    """Rows of tokens, padded to one length.

    Attributes:
        ids: int64 [n, length]; 0 where `mask` is 0.
        mask: int64 [n, length], 1 for a token and 0 for padding.
        prefix: how many leading tokens of each row were prepended and are not predicted.
        origin: where the tokens come from, for people.
    """

    ids: Ids
    mask: Ids
    prefix: int = 0
    origin: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over shape, ids and mask, the same on every machine."""
        digest = hashlib.sha256(repr(self.ids.shape).encode())
        for array in (self.ids, self.mask):
            digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
        return digest.hexdigest()

    @property
    def tokens(self) -> int:
        """Number of tokens that are run, prepended ones included, padding not."""
        return int(self.mask.sum())

    @property
    def predicted(self) -> npt.NDArray[np.bool_]:
        """Whether the logits at a position are judged by the token that follows it: bool [n, length - 1]."""
        pairs = (self.mask[:, :-1] & self.mask[:, 1:]).astype(bool)
        pairs[:, : max(self.prefix - 1, 0)] = False
        return pairs

    def batches(self, size: int) -> Iterator[tuple[Ids, Ids]]:
        """Yield ids and mask of `size` rows at a time, in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self.ids[start : start + size], self.mask[start : start + size]

    def take(self, tokens: int) -> Sequences:
        """The first whole rows that hold at most so many tokens together, and at least one row."""
        rows = int(np.searchsorted(np.cumsum(self.mask.sum(axis=1)), tokens, side="right"))
        return self._rows(slice(max(rows, 1)))

    def shard(self, index: int, count: int) -> Sequences:
        """Every `count`-th row from `index` on: the shards of all indices are disjoint and together all rows.

        Raises:
            UsageError: `index` is not in 0 to `count` - 1.
        """
        if not 0 <= index < count:
            raise UsageError(f"there is no shard {index} of {count}", remedy=f"Shards count from 0 to {count - 1}.")
        return self._rows(slice(index, None, count))

    def _rows(self, rows: slice) -> Sequences:
        ids, mask = self.ids[rows], self.mask[rows]
        width = int(np.flatnonzero(mask.any(axis=0)).max(initial=-1)) + 1  # padding that no row needs goes
        return replace(self, ids=ids[:, :width], mask=mask[:, :width])


def spread(sequences: Sequences, tokens: int) -> Sequences:
    """So many tokens' worth of whole rows, and one at least, as evenly spread over all of them as it takes."""
    lengths = sequences.mask.sum(axis=1)
    rows = max(1, int(tokens / max(1.0, float(lengths.mean()))))
    for step in range(max(1, len(sequences) // rows), 1, -1):
        if lengths[::step].sum() + lengths.max() > tokens:  # another row would be too much
            return sequences.shard(0, step).take(tokens)
    return sequences.take(tokens)


def beginnings(sequences: Sequences, rows: int | None, length: int) -> Sequences:
    """So many rows at most, None for all, and so many tokens of each."""
    return replace(sequences, ids=sequences.ids[:rows, :length], mask=sequences.mask[:rows, :length])


def padded_behind(ids: Ids, mask: Ids) -> tuple[Ids, Ids]:
    """The same rows, int64 [n, length] both, with what pads them in front moved behind.

    In front of text it would be rows of an attention mask that let nothing through, of which some graphs make NaN.
    """
    lead = mask.argmax(axis=1)
    columns = (np.arange(mask.shape[1]) + lead[:, None]) % mask.shape[1]
    return np.take_along_axis(ids, columns, axis=1), np.take_along_axis(mask, columns, axis=1)


def cut(
    documents: Sequence[Ids], prefix: Sequence[int], *, window: int, origin: str, min_windows: int = 0
) -> Sequences:
    """Cut documents into rows of at most `window` tokens, the last of each document padded on the right.

    Args:
        documents: int64 [tokens] each.
        prefix: what every row starts with.
        window: tokens in a full row, prefix included.
        origin: named in errors.
        min_windows: how many full windows the documents have to fill together.

    Raises:
        DataError: there are too few tokens.
        UsageError: `window` leaves no room for text.
    """
    lead = max(len(prefix), 1)  # tokens of a row that are context alone
    stride = window - lead
    if stride < 1:
        raise UsageError(f"a window of {window} has no room for text", remedy=f"--window {lead + 1} or more.")
    bare = 0 if prefix else 1
    predicted = sum(max(len(ids) - bare, 0) for ids in documents)
    needed = max(min_windows * stride, 1)
    if predicted < needed:
        fitting = predicted // max(min_windows, 1) + lead
        raise DataError(
            f"{predicted} tokens to predict where {needed} are needed (window {window}, times {max(min_windows, 1)})",
            where=origin,
            remedy="Give more text" + (f", or --window {fitting}." if fitting > lead else "."),
        )
    head = np.asarray(prefix, dtype=np.int64)
    rows = [
        np.concatenate([head, ids[start : start + stride + bare]])
        for ids in documents
        for start in range(0, len(ids) - bare, stride)
    ]
    lengths = np.array([len(row) for row in rows])
    mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
    padded = np.zeros_like(mask)
    padded[mask.astype(bool)] = np.concatenate(rows)
    return Sequences(padded, mask, prefix=len(prefix), origin=origin)
