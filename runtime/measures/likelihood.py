"""How likely a model finds tokens behind others, and whether they are what greedy decoding would give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.text.sequences import Ids

Floats: TypeAlias = npt.NDArray[np.float32]
Logits: TypeAlias = Callable[[Ids, Ids], Floats]
"""From ids and mask, int64 [batch, length], to logits, float32 [batch, length, vocabulary]."""

_MAX_LOGITS = 2**26  # values of one batch: 256 MiB


@dataclass(frozen=True, slots=True)
class Request:
    """Tokens to run, and those that should follow the last len(targets) of them."""

    inputs: tuple[int, ...]
    targets: Ids


def likelihoods(
    requests: Sequence[Request],
    logits: Logits,
    *,
    vocab_size: int,
    batch: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Summed log-likelihood of each request's targets, float64 [requests], and whether each of them is the likeliest.

    Requests that have the same inputs are run once.

    Args:
        requests: what to run, and what should follow.
        logits: runs the model on rows padded on the right.
        vocab_size: of the logits, for how much memory a batch takes.
        batch: most rows at once; fewer where the logits would exceed 256 MiB.
        progress: called with rows done and rows in all after each batch.
    """
    scores, greedy = np.zeros(len(requests)), np.zeros(len(requests), dtype=bool)
    askers: dict[tuple[int, ...], list[int]] = {}
    for index, request in enumerate(requests):
        askers.setdefault(request.inputs, []).append(index)
    done = 0
    for rows in _batches(list(askers), batch, vocab_size):
        lengths = np.array([len(row) for row in rows])
        mask = (np.arange(lengths.max()) < lengths[:, None]).astype(np.int64)
        ids = np.zeros_like(mask)
        ids[mask.astype(bool)] = np.concatenate(rows)
        values = logits(ids, mask)
        for number, row in enumerate(rows):
            for index in askers[row]:
                targets = requests[index].targets
                scores[index], greedy[index] = _judge(values[number, len(row) - len(targets) : len(row)], targets)
        done += len(rows)
        if progress is not None:
            progress(done, len(askers))
    return scores, greedy


def _batches(rows: list[tuple[int, ...]], batch: int, vocab_size: int) -> Iterator[list[tuple[int, ...]]]:
    """Rows by falling length: little padding, and too little memory shows at once."""
    rows = sorted(rows, key=len, reverse=True)
    start = 0
    while start < len(rows):
        size = max(min(batch, _MAX_LOGITS // (len(rows[start]) * vocab_size)), 1)
        yield rows[start : start + size]
        start += size


def _judge(values: Floats, targets: Ids) -> tuple[float, bool]:
    """Log-likelihood of targets [t] under logits [t, vocabulary], and whether all of them are the likeliest."""
    exact = np.asarray(values, dtype=np.float64)
    peak = exact.max(axis=-1)
    chosen = np.take_along_axis(exact, targets[:, None], axis=-1)[:, 0]
    total = np.log(np.exp(exact - peak[:, None]).sum(axis=-1))
    return float((chosen - peak - total).sum()), bool((exact.argmax(axis=-1) == targets).all())
