"""Perplexity, KL and agreement of several models on one text; FP logits are computed once a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.measures.asked import Asked, Places, Stream, asked, behind_every, behind_last, gives_last_only
from spq_graph.runtime.measures.calibrate import batch_size
from spq_graph.runtime.sessions.segmented import Batch, Progress
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import CheckError, DataError

Float32 = npt.NDArray[np.float32]


@dataclass(slots=True)
class Score:
    """Sums over predicted tokens.

    Attributes:
        tokens: how many tokens were predicted.
        nll_sum: negative log likelihood, nats.
        kl_sum: KL(reference || model) over the next-token distributions, nats.
        agreed: tokens where model and reference rank the same token first.
    """

    tokens: int = 0
    nll_sum: float = 0.0
    kl_sum: float = 0.0
    agreed: int = 0

    @property
    def nll(self) -> float:
        """Mean negative log likelihood, nats a token."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nll), at most e^700: a report holds finite numbers."""
        return math.exp(min(self.nll, 700.0))

    @property
    def kl(self) -> float:
        """Mean KL(reference || model), nats a token."""
        return self.kl_sum / self.tokens

    @property
    def top1(self) -> float:
        """Share of tokens where model and reference rank the same token first."""
        return self.agreed / self.tokens


@dataclass(slots=True)
class Reference:
    """What the floating-point model says on one batch, kept in the form that scoring needs.

    Attributes:
        logits: float32 [tokens, vocabulary], of predicted tokens only.
        probabilities: their softmax, float32 [tokens, vocabulary].
        log_z: logarithm of the softmax's denominator, float64 [tokens].
        best: the token ranked first, int64 [tokens].
        targets: the tokens to predict, int64 [tokens].
    """

    logits: Float32
    probabilities: Float32
    log_z: npt.NDArray[np.float64]
    best: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


def _softmax(logits: Float32) -> tuple[Float32, npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Exponentials, shifted by the row's maximum, with the logarithm of their unshifted sum and the argmax by row."""
    best = logits.argmax(axis=-1)
    top = logits[np.arange(len(logits)), best]
    exponentials = logits - top[:, None]
    np.exp(exponentials, out=exponentials)
    log_z = np.log(exponentials.sum(axis=-1, dtype=np.float64)) + top
    return exponentials, log_z, best


# Rows and columns of a batch, and what the reference says there.
Part: TypeAlias = tuple[Places, Reference]
PART_BYTES = 32 << 20


def reference_of(logits: Float32, targets: npt.NDArray[np.int64]) -> Reference:
    """Prepare the reference's logits, [tokens, vocabulary], for scoring."""
    exponentials, log_z, best = _softmax(logits)
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return Reference(logits, exponentials, log_z, best, targets)


def add_batch(score: Score, logits: Float32, reference: Reference) -> None:
    """Score one batch of logits, [tokens, vocabulary].

    KL(p || q) = sum p (l_p - l_q) - (log Z_p - log Z_q): the difference of the logits is taken first, so that nothing
    cancels where the two models are close.
    """
    exponentials, log_z, best = _softmax(logits)
    score.tokens += len(logits)
    score.nll_sum += float((log_z - logits[np.arange(len(logits)), reference.targets]).sum())
    difference = np.subtract(reference.logits, logits, out=exponentials)
    mean = np.einsum("tv,tv->t", reference.probabilities, difference)
    score.kl_sum += float((mean - (reference.log_z - log_z)).sum())
    score.agreed += int((best == reference.best).sum())


def score_text(
    reference: Stream, models: Sequence[Stream], sequences: Sequences, progress: Progress | None = None
) -> tuple[Score, list[Score]]:
    """Score a reference and several models on the same tokens: on one a window, where one gives logits of no more.

    Returns:
        The reference's score, whose KL is 0 and agreement 1, and the models' in their order.

    Raises:
        DataError: there is no token to predict, or a model has another vocabulary than the reference.
        CheckError: a model's logits are NaN.
    """
    base, scores = Score(), [Score() for _ in models]
    done = 0
    batches = asked(reference, models, sequences)
    streams = [runner.stream([(batch.ids, batch.mask) for batch in batches]) for runner in (reference, *models)]
    for batch in batches:
        prepared = _prepare(next(streams[0]), batch, reference)
        for _, part in prepared:
            _add_itself(base, part)
        for model, stream, score in zip(models, streams[1:], scores, strict=True):
            logits = next(stream)
            _refuse_other_vocabulary(logits, prepared, model, reference)
            _add(score, logits, prepared, model)
        done += len(batch.ids)
        if progress is not None:
            progress(done, len(sequences))
    if not base.tokens:
        raise _nothing(sequences, reference)
    return base, scores


def _nothing(sequences: Sequences, stream: Stream) -> DataError:
    """That no token of a text can be predicted; a graph may insist on a length that none of its rows has."""
    length = stream.fixed_shape[1]
    if stream.last_only and length is not None:
        return DataError(
            f"the graph takes exactly {length} tokens and gives logits of the last one only, and no row holds the "
            "token behind so many",
            where=sequences.origin,
            remedy=f"give a longer text, or ids in rows of {length + 1} tokens",
        )
    return DataError("there is no token to predict", where=sequences.origin, remedy="give a longer text")


def _refuse_other_vocabulary(logits: Float32, prepared: list[Part], model: Stream, reference: Stream) -> None:
    if prepared and (size := prepared[0][1].logits.shape[-1]) != logits.shape[-1]:
        raise DataError(
            f"the two models have vocabularies of {logits.shape[-1]} and {size} tokens, and cannot be compared",
            where=f"{model.path}, {reference.path}",
            remedy="leave out --against, and measure each of them alone",
        )


def _add_itself(score: Score, reference: Reference) -> None:
    score.tokens += len(reference.targets)
    rows = np.arange(len(reference.targets))
    score.nll_sum += float((reference.log_z - reference.logits[rows, reference.targets]).sum())
    score.agreed += len(rows)


def _prepare(logits: Float32, batch: Asked, runner: Stream) -> list[Part]:
    """The reference's logits of a batch, in parts: what scoring makes of them would not fit for all tokens at once."""
    step = max(1, PART_BYTES // (4 * logits.shape[-1]))
    return [(at, reference_of(_finite(logits, at, runner), targets)) for at, targets in batch.parts(step)]


def _add(score: Score, logits: Float32, prepared: list[Part], runner: Stream) -> None:
    for at, reference in prepared:
        add_batch(score, _finite(logits, at, runner), reference)


def _finite(logits: Float32, at: Places, runner: Stream) -> Float32:
    chosen = logits[at]
    if np.isnan(chosen).any():
        raise CheckError("the model's logits are NaN", where=str(runner.path))
    return chosen


class KlMeter:
    """KL against one reference on a few sequences, whose logits are computed once and kept.

    Args:
        reference: the floating-point model.
        sequences: what to measure on; fewer, and the beginnings of them, where their logits would not fit `memory`.
        memory: bytes that the kept logits may take.
    """

    def __init__(self, reference: Stream, sequences: Sequences, memory: int = 1 << 28) -> None:
        if gives_last_only(reference):
            self._asked = list(behind_last(sequences, reference.fixed_shape, judged=False))
        else:
            batches = list(sequences.batches(batch_size(reference, sequences)))
            fitting = _fitting(batches, reference, memory)
            self._asked = [behind_every(ids, mask, sequences.prefix) for ids, mask in fitting]
        self._batches = [(batch.ids, batch.mask) for batch in self._asked]
        self._logits = [np.array(logits) for logits in reference.stream(self._batches)]
        self._reference = reference
        self.tokens = sum(len(batch.targets) for batch in self._asked)
        if not self.tokens:
            raise _nothing(sequences, reference)

    def kl(self, model: Stream) -> float:
        """Mean KL(reference || model), nats a token."""
        score = Score()
        for batch, base, logits in zip(self._asked, self._logits, model.stream(self._batches), strict=True):
            step = max(1, PART_BYTES // (4 * logits.shape[-1]))
            for at, targets in batch.parts(step):
                _add(score, logits, [(at, reference_of(_finite(base, at, self._reference), targets))], model)
        return score.kl


def _fitting(batches: Sequence[Batch], reference: Stream, memory: int) -> list[Batch]:
    """As many batches as fit; the beginning of the first where even it does not: what follows changes no token."""
    tokens = memory // (4 * (reference.vocabulary or 1))  # float32
    kept: list[Batch] = []
    for ids, mask in batches:
        if kept and ids.size > tokens:
            break
        rows, length = max(1, tokens // ids.shape[1]), max(2, tokens)
        kept.append((ids[:rows, :length], mask[:rows, :length]))
        tokens -= ids.size
    return kept
