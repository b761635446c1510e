"""Log-probabilities of a reference, kept while many models are held against them."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]

MEMORY = 256 << 20
# What is left free of a disk: models that are measured are written there as well.
SPARE_DISK = 512 << 20
# The least logarithm, of what has no probability as well: half precision has none below, and nothing times it is 0.
LEAST = -65504.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where log-probabilities are kept, and of how many tokens there.

    Attributes:
        half: in half precision instead of float32.
        folder: of a file without a name, which the system removes whatever becomes of this process; None for memory.
        tokens: how many fit, where that is fewer than asked for; None where all of them do.
    """

    half: bool = False
    folder: Path | None = None
    tokens: int | None = None


def place_for(tokens: int, vocabulary: int, memory: int, folder: Path | None) -> Place:
    """The most exact place that holds so many tokens; where there is none, the one that holds the most.

    Args:
        tokens: how many are to be kept.
        vocabulary: how many numbers each of them takes.
        memory: bytes of it that may be taken.
        folder: where a file may be written; None for nowhere.
    """
    half = 2 * tokens * vocabulary
    if 2 * half <= memory:
        return Place()
    if half <= memory:
        return Place(half=True)
    room = max(0, shutil.disk_usage(folder).free - SPARE_DISK) if folder is not None else 0
    if half <= room:
        return Place(half=True, folder=folder)
    most = max(memory, room) // (2 * vocabulary)
    return Place(half=True, folder=folder if room > memory else None, tokens=max(2, most))


class Kept:
    """Log-probabilities of one reference, part by part; first added, then held against models' logits.

    Half precision rounds log p by a part in 2048 at most, which makes of the reference a p' beside p. What that changes
    is taken off token by token: KL(p || q) ~ KL(p' || q) - KL(p' || p). What is left is the rounding's share of the
    difference between p and q, about a thousandth of the KL of a few dozen tokens, and nothing where q is p.

    Args:
        place: where they are kept.
    """

    def __init__(self, place: Place) -> None:
        self._type: type[np.floating[Any]] = np.float16 if place.half else np.float32
        self._file = tempfile.TemporaryFile(dir=place.folder) if place.folder is not None else None  # noqa: SIM115
        self._parts: list[npt.NDArray[Any]] = []
        self._shapes: list[tuple[int, ...]] = []
        self._own: list[Float64] = []
        self._totals: list[Float64] = []

    def add(self, logits: Float32) -> None:
        """Keep the log-probabilities of these logits, [tokens, vocabulary], which are overwritten.

        Raises:
            OSError: the disk is full.
        """
        scratch = _to_log_probabilities(logits)
        kept = logits.astype(self._type)
        self._totals.append(np.exp(kept.astype(np.float32), out=scratch).sum(axis=-1, dtype=np.float64))
        self._own.append(_kl(kept, logits, scratch, self._totals[-1]))
        if self._file is None:
            self._parts.append(kept)
        else:
            self._file.write(kept.data)
            self._shapes.append(kept.shape)

    def finish(self) -> None:
        """Say that all is added; what went to a file is read from there on.

        Raises:
            OSError: the disk is full.
        """
        if self._file is None:
            return
        with self._file:
            self._file.flush()
            whole = np.memmap(self._file, self._type, "r")  # which keeps the file open for itself
        start = 0
        for shape in self._shapes:
            self._parts.append(whole[start : start + math.prod(shape)].reshape(shape))
            start += math.prod(shape)

    def kl(self, part: int, logits: Float32) -> Float64:
        """KL(reference || model) by token of a part, nats, from the model's logits there, which are overwritten."""
        scratch = _to_log_probabilities(logits)
        return _kl(self._parts[part], logits, scratch, self._totals[part]) - self._own[part]


def _to_log_probabilities(logits: Float32) -> Float32:
    """Turn logits, [tokens, vocabulary], into log-probabilities where they are; returns scratch of their size."""
    logits -= logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(logits)
    logits -= np.log(exponentials.sum(axis=-1, dtype=np.float64))[:, None].astype(np.float32)
    np.maximum(logits, LEAST, out=logits)
    return exponentials


def _kl(kept: npt.NDArray[Any], model: Float32, scratch: Float32, total: Float64) -> Float64:
    """KL(p' || q) by token from their logarithms, of which the second is overwritten, and scratch of its size.

    The difference of the logarithms is taken first, so that nothing cancels where the two are close. p' need not add up
    to 1: it is taken as what it is divided by its sum, the total.
    """
    reference = kept.astype(np.float32, copy=False)
    np.subtract(reference, model, out=model)
    np.exp(reference, out=scratch)
    return np.asarray(np.einsum("tv,tv->t", scratch, model) / total - np.log(total), dtype=np.float64)
