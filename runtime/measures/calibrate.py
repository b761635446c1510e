"""Run sequences through an observing model and collect Ranges. No activation leaves the graph."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from spq_graph.documents.checkpoint import Checkpoint
from spq_graph.documents.interrupts import held
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.value_range import ValueRange
from spq_graph.runtime.sessions.cores import cores
from spq_graph.runtime.sessions.segmented import Progress, SegmentedRunner
from spq_graph.runtime.sessions.session import Decoder
from spq_graph.runtime.text.sequences import Ids, Sequences
from spq_graph.terms.errors import ClusterError, SpqError
from spq_graph.terms.segment import Segmented

# Tokens at one time: large enough to keep the cores busy, small enough that activations stay a few hundred MB.
BATCH_TOKENS = 1024
# Batches at the same time, so that a product has some hundred rows for each read of its weight. How large batches are
# does not depend on the cores: what was measured before an interrupt counts on another machine too.
MOST_SIDE_BY_SIDE = 4


@dataclass(frozen=True, slots=True)
class Guard:
    """What calibration says of activations that nothing can be measured on.

    Attributes:
        not_finite: names what is not finite first on a batch, int64 [batch, length] both, as an error to raise; called
            only where something is not.
        too_large: what to raise of the largest absolute value of each value that is held in a format of its own, over
            all batches; None for nothing.
    """

    not_finite: Callable[[Ids, Ids], SpqError]
    too_large: Callable[[Mapping[str, float]], SpqError | None] = lambda _: None


class NotFiniteOn(Exception):  # noqa: N818 - for whoever knows the sites, who makes an error for people of it
    """An activation is NaN or infinite.

    Args:
        ids: the batch that it is so on, int64 [batch, length].
        mask: its mask, int64 [batch, length].
    """

    def __init__(self, ids: Ids, mask: Ids) -> None:
        super().__init__(ids, mask)
        self.ids, self.mask = ids, mask


@dataclass(slots=True)
class Seen:
    """What was seen on some batches.

    Attributes:
        ranges: of the probed values, with the sequences counted.
        sizes: by value that is held in a format of its own, its largest absolute value.
    """

    ranges: Ranges
    sizes: dict[str, float]

    def merge(self, other: Seen) -> None:
        """Add what was seen on other batches of the same model."""
        self.ranges.merge(other.ranges)
        for value, size in other.sizes.items():
            self.sizes[value] = max(self.sizes.get(value, 0.0), size)


@dataclass(frozen=True, slots=True)
class Observed:
    """A model that tells of its activations.

    Attributes:
        model: the instrumented model.
        probes: by value, its outputs: low and high by token [batch, length], low and high by channel [..., K].
        finite_check: output that NaN anywhere reaches.
        digest: of the model, noted in the ranges.
        sizes: by value that is held in a format of its own, its outputs, float32 [...].
    """

    model: Segmented
    probes: Sequence[tuple[str, Sequence[str]]]
    finite_check: str
    digest: str
    sizes: Sequence[tuple[str, Sequence[str]]] = ()

    def batches(self, sequences: Sequences) -> list[Ids]:
        """The batches that sequences are run in, int64 [batch, length], wherever that is done."""
        return list(batches_without_padding(sequences, *self._fixed_shape))

    def seen(self, batches: Sequence[Ids], progress: Progress | None = None) -> Generator[Seen, None, None]:
        """Run batches, and tell what was seen on one after the other.

        Args:
            batches: some of `batches`.
            progress: called with steps done and in all; a step is one batch in one segment.

        Raises:
            NotFiniteOn: an activation is NaN or infinite.
        """
        largest = max((len(rows) * (self._fixed_shape[1] or rows.shape[1]) for rows in batches), default=1)
        side_by_side = max(1, min(cores(), MOST_SIDE_BY_SIDE, BATCH_TOKENS // largest))
        outputs = self._outputs
        runner = SegmentedRunner(self.model, outputs=outputs, side_by_side=side_by_side)
        filled = [runner.filled(rows, np.ones_like(rows)) for rows in batches]
        for (ids, mask), rows, arrays in zip(filled, batches, runner.results(filled, progress), strict=True):
            if not all(np.isfinite(array).all() for array in arrays):
                raise NotFiniteOn(ids, mask)
            by_name = dict(zip(outputs, arrays, strict=True))
            sizes = {
                value: max(float(np.abs(by_name[name]).max(initial=0.0)) for name in names)
                for value, names in self.sizes
            }
            mask[len(rows) :] = 0  # what only fills the batch was seen already
            ranges = _seen([name for name, _ in self.probes], arrays[: 4 * len(self.probes)], ids, mask, self.digest)
            ranges.count(rows, np.ones_like(rows))
            yield Seen(ranges, sizes)

    @property
    def _outputs(self) -> list[str]:
        return [*(name for _, outputs in (*self.probes, *self.sizes) for name in outputs), self.finite_check]

    @property
    def _fixed_shape(self) -> tuple[int | None, int | None]:
        return Decoder(self.model.where, self.model.inputs, self.model.outputs, self._outputs).fixed_shape


Measure: TypeAlias = Callable[[Sequence[Ids], Progress | None], Generator[Seen, None, None]]
"""Tells what is seen on batches, in their order, of one or of several at a time, as `Observed.seen` does."""


def batch_size(runner: Decoder, sequences: Sequences) -> int:
    """How many sequences go into one batch; each takes as many tokens as the graph makes of it."""
    rows, columns = runner.fixed_shape
    return rows or max(1, BATCH_TOKENS // (columns or sequences.ids.shape[1]))


def collect_ranges(
    observed: Observed,
    sequences: Sequences,
    guard: Guard,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    measure: Measure | None = None,
) -> Ranges:
    """Collect the ranges of every probed value, segment by segment.

    Args:
        observed: the instrumented model.
        sequences: what to run.
        guard: says what an activation is that is NaN, infinite, or too large for what holds it.
        progress: called with steps done and in all.
        checkpoint: where to go on from, and where what was measured is kept on an interrupt; None to keep nothing.
        measure: runs the batches, here or elsewhere; None for `observed` itself.

    Raises:
        SpqError: what the guard says.
    """
    batches = observed.batches(sequences)
    ranges, done = _earlier(checkpoint, batches, observed.digest)
    all_seen, whole = Seen(ranges, {}), True
    try:
        with closing((measure or observed.seen)(batches[done:], progress)) as measured:
            for seen in measured:
                whole = False
                with held():
                    all_seen.merge(seen)
                    whole = True
                if checkpoint is not None:
                    checkpoint.save_if_due(ranges)
    except NotFiniteOn as found:
        raise guard.not_finite(found.ids, found.mask) from found
    except (KeyboardInterrupt, SystemExit, ClusterError) as interrupt:
        if checkpoint is not None and whole and ranges.sequences:
            checkpoint.save(ranges)
            kept = f"{ranges.sequences} of {len(sequences)} sequences were measured"
            interrupt.add_note(f"{kept}: the same command goes on from there")
        elif checkpoint is None:
            interrupt.add_note(
                "nothing was left behind: `spq-graph calibrate` would go on from where it was stopped, and "
                "`quantize --ranges` takes what it measured"
            )
        raise
    largest = {value: all_seen.sizes.get(value, 0.0) for value, _ in observed.sizes}
    for value in largest.keys() & ranges.values.keys():  # what an interrupted run saw of it is known from its range
        largest[value] = max(largest[value], ranges.values[value].peak.value)
    if (error := guard.too_large(largest)) is not None:
        raise error
    return ranges


def _earlier(checkpoint: Checkpoint | None, batches: Sequence[Ids], model_digest: str) -> tuple[Ranges, int]:
    """What an interrupted run measured on the first of these batches, and how many they were."""
    earlier = checkpoint.load(model_digest) if checkpoint is not None else None
    same = Ranges(model_digest)
    for done, rows in enumerate(batches):
        if earlier is None or same.sequences >= earlier.sequences:
            break
        same.count(rows, np.ones_like(rows))
        if (same.sequences, same.data) == (earlier.sequences, earlier.data):
            return earlier, done + 1
    return Ranges(model_digest), 0


def _seen(
    names: Sequence[str], arrays: list[npt.NDArray[np.float32]], ids: Ids, mask: Ids, model_digest: str
) -> Ranges:
    """The ranges of one batch, without its sequences counted."""
    seen = Ranges(model_digest)
    for name, (low, high, channel_low, channel_high) in zip(names, _fours(arrays), strict=True):
        if low.size:  # an expert that no token of this batch was routed to has none
            lowest, highest = (part.reshape(-1, part.shape[-1]) for part in (channel_low, channel_high))
            by_channel = lowest.min(axis=0), highest.max(axis=0)
            rows = _by_token(low, high, ids, mask)
            seen.add(name, ValueRange.observe(rows.low, rows.high, by_channel, rows.ids, rows.mask))
    return seen


def batches_without_padding(sequences: Sequences, size: int | None, columns: int | None) -> Iterator[Ids]:
    """Yield the tokens of rows of one length, int64 [batch, length], the longest first.

    `size` and `columns` are what the graph insists on; None where it leaves them free.

    Padding would reach the reductions by channel, and what it does to them would depend on how rows are sharded.
    """
    lengths = sequences.mask.sum(axis=1)
    for length in np.unique(lengths[lengths > 0])[::-1].tolist():
        some = lengths == length
        rows = sequences.ids[some][sequences.mask[some] == 1].reshape(-1, length)
        step = size or max(1, BATCH_TOKENS // MOST_SIDE_BY_SIDE // (columns or length))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def _fours(arrays: list[npt.NDArray[np.float32]]) -> list[list[npt.NDArray[np.float32]]]:
    return [arrays[i : i + 4] for i in range(0, len(arrays), 4)]


class _Rows(NamedTuple):
    """Reductions by token, [batch, length] each; without ids where rows are no sequences."""

    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    ids: Ids | None
    mask: Ids


def _by_token(low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], ids: Ids, mask: Ids) -> _Rows:
    """Bring reductions to [batch, length]; a value that is not one row a token has neither ids nor sequences."""
    if low.size == ids.size:
        return _Rows(low.reshape(ids.shape), high.reshape(ids.shape), ids, mask)
    rows = low.reshape(1, -1)
    return _Rows(rows, high.reshape(1, -1), None, np.ones(rows.shape, np.int64))
