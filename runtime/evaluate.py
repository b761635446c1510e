"""Evaluate: perplexity, KL and agreement of several models on one text; FP logits are computed once a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spq_graph.errors import CheckError, DataError
from spq_graph.runtime.calibrate import batch_size
from spq_graph.runtime.sequences import Sequences
from spq_graph.runtime.session import Runner

Progress = Callable[[int, int], None]
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


def evaluate(
    reference: Runner, models: Sequence[Runner], sequences: Sequences, progress: Progress | None = None
) -> tuple[Score, list[Score]]:
    """Score a reference and several models on the same tokens.

    Returns:
        The reference's score, whose KL is 0 and agreement 1, and the models' in their order.

    Raises:
        DataError: there is no token to predict.
        CheckError: a model's logits are NaN.
    """
    base, scores = Score(), [Score() for _ in models]
    done = 0
    for ids, mask in sequences.batches(batch_size(reference, sequences)):
        valid = _predicted(ids, mask, sequences.prefix)
        targets = ids[:, 1:][valid]
        if targets.size:
            prepared = reference_of(_finite(reference, ids, mask, valid), targets)
            _add_itself(base, prepared)
            for model, score in zip(models, scores, strict=True):
                add_batch(score, _finite(model, ids, mask, valid), prepared)
        done += len(ids)
        if progress is not None:
            progress(done, len(sequences))
    if not base.tokens:
        raise DataError("there is no token to predict", remedy="give a longer text")
    return base, scores


def _add_itself(score: Score, reference: Reference) -> None:
    score.tokens += len(reference.targets)
    rows = np.arange(len(reference.targets))
    score.nll_sum += float((reference.log_z - reference.logits[rows, reference.targets]).sum())
    score.agreed += len(rows)


def _predicted(ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], prefix: int) -> npt.NDArray[np.bool_]:
    return Sequences(ids, mask, prefix).predicted


def _finite(
    runner: Runner, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], valid: npt.NDArray[np.bool_]
) -> Float32:
    logits = runner.logits(ids, mask)[:, :-1][valid]
    if np.isnan(logits).any():
        raise CheckError("the model's logits are NaN", where=str(runner.path))
    return logits


class KlMeter:
    """KL against one reference on a few sequences, whose logits are computed once and kept.

    Args:
        reference: the floating-point model.
        sequences: what to measure on; fewer are used where their logits would not fit `memory`.
        memory: bytes that the kept logits may take.
    """

    def __init__(self, reference: Runner, sequences: Sequences, memory: int = 1 << 29) -> None:
        self._batches: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_], Reference]] = []
        self.tokens = 0
        used = 0
        for ids, mask in sequences.batches(batch_size(reference, sequences)):
            valid = _predicted(ids, mask, sequences.prefix)
            prepared = reference_of(_finite(reference, ids, mask, valid), ids[:, 1:][valid])
            size = prepared.logits.nbytes + prepared.probabilities.nbytes
            if self._batches and used + size > memory:
                break
            used += size
            self.tokens += len(prepared.targets)
            self._batches.append((ids, mask, valid, prepared))

    def kl(self, model: Runner) -> float:
        """Mean KL(reference || model), nats a token."""
        score = Score()
        for ids, mask, valid, prepared in self._batches:
            add_batch(score, _finite(model, ids, mask, valid), prepared)
        return score.kl
