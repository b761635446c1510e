"""Calibrate: run sequences through an observing model and collect Ranges. No activation leaves the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spq_graph.errors import ActivationError
from spq_graph.ranges import Ranges, ValueRange
from spq_graph.runtime.sequences import Ids, Sequences
from spq_graph.runtime.session import Runner

Progress = Callable[[int, int], None]
# Tokens in one batch: large enough to keep the cores busy, small enough that activations stay a few hundred MB.
BATCH_TOKENS = 1024


def batch_size(runner: Runner, sequences: Sequences) -> int:
    """How many sequences go into one batch."""
    fixed, _ = runner.fixed_shape
    return fixed or max(1, BATCH_TOKENS // sequences.ids.shape[1])


def calibrate(
    observing: Path,
    probes: Sequence[tuple[str, Sequence[str]]],
    finite_check: str,
    sequences: Sequences,
    model_digest: str,
    diagnose: Callable[[Ids, Ids], str],
    progress: Progress | None = None,
) -> Ranges:
    """Collect the ranges of every probed value.

    Args:
        observing: the instrumented model.
        probes: by value, its outputs: low and high by token [batch, length], low and high by channel [..., K].
        finite_check: output that NaN anywhere reaches.
        sequences: what to run.
        model_digest: noted in the ranges.
        diagnose: names the first site that is not finite on a batch; called only where something is not.
        progress: called with sequences done and in all.

    Raises:
        ActivationError: an activation is NaN or infinite.
    """
    names = [name for _, outputs in probes for name in outputs]
    runner = Runner(observing, outputs=[*names, finite_check])
    ranges = Ranges(model_digest)
    done = 0
    for rows in batches_without_padding(sequences, runner.fixed_shape[0]):
        ids, mask = runner.filled(rows, np.ones_like(rows))
        *arrays, check = runner.run(ids, mask)
        if not np.isfinite(check) or not all(np.isfinite(a).all() for a in arrays):
            raise ActivationError(
                "an activation is NaN or infinite on calibration data",
                where=diagnose(ids, mask),
                remedy="check the weights in front of this site, or whether the model overflows its precision",
            )
        mask[len(rows) :] = 0  # what only fills the batch was seen already
        for (name, _), (low, high, channel_low, channel_high) in zip(probes, _fours(arrays), strict=True):
            if not low.size:  # an expert that no token of this batch was routed to
                continue
            by_sequence = np.maximum(np.abs(channel_low), np.abs(channel_high))
            channels = by_sequence.reshape(-1, by_sequence.shape[-1]).max(axis=0)
            ranges.add(name, ValueRange.observe(*_by_token(low, high, ids, mask, channels)))
        ranges.count(rows, np.ones_like(rows))
        done += len(rows)
        if progress is not None:
            progress(done, len(sequences))
    ranges.settle()
    return ranges


def batches_without_padding(sequences: Sequences, size: int | None) -> Iterator[Ids]:
    """Yield the tokens of rows of one length, int64 [batch, length], the longest first.

    Padding would reach the reductions by channel, and what it does to them would depend on how rows are sharded.
    """
    lengths = sequences.mask.sum(axis=1)
    for length in np.unique(lengths[lengths > 0])[::-1].tolist():
        some = lengths == length
        rows = sequences.ids[some][sequences.mask[some] == 1].reshape(-1, length)
        step = size or max(1, BATCH_TOKENS // length)
        for start in range(0, len(rows), step):
            yield rows[start : start + step]


def _fours(arrays: list[npt.NDArray[np.float32]]) -> list[list[npt.NDArray[np.float32]]]:
    return [arrays[i : i + 4] for i in range(0, len(arrays), 4)]


def _by_token(
    low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], ids: Ids, mask: Ids, channels: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32], Ids | None, Ids]:
    """Bring reductions to [batch, length]; a value that is not one row a token has neither ids nor sequences."""
    if low.size == ids.size:
        return low.reshape(ids.shape), high.reshape(ids.shape), channels, ids, mask
    rows = low.reshape(1, -1)
    return rows, high.reshape(1, -1), channels, None, np.ones(rows.shape, np.int64)


def first_not_finite(checking: Path, outputs: Sequence[str], ids: Ids, mask: Ids) -> int | None:
    """Index of the first output of a finite-checking model that is not finite on a batch."""
    results = Runner(checking, outputs=outputs).run(ids, mask)
    return next((i for i, value in enumerate(results) if not np.isfinite(value)), None)
