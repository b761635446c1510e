"""Perplexity, KL and agreement of several models on one text; FP logits are computed once a batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.measures.calibrate import batch_size
from spq_graph.runtime.measures.finite import RULED_OUT, LogitsNotFiniteError, not_finite
from spq_graph.runtime.sessions.segmented import Batch, Progress, SegmentedRunner
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import DataError

Float32 = npt.NDArray[np.float32]
Stream: TypeAlias = Runner | SegmentedRunner


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
Places: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
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
    """Score a reference and several models on the same tokens.

    Returns:
        The reference's score, whose KL is 0 and agreement 1, and the models' in their order.

    Raises:
        DataError: there is no token to predict.
        LogitsNotFiniteError: a model's logits are NaN or infinite.
    """
    base, scores = Score(), [Score() for _ in models]
    done = 0
    batches = list(sequences.batches(batch_size(reference, sequences)))
    streams = [runner.stream(batches) for runner in (reference, *models)]
    for ids, mask in batches:
        said = _Logits(next(streams[0]), ids, mask, reference)
        said.at(_unjudged(ids, mask, sequences.prefix))
        prepared = [said.prepared(at) for at in _parts(ids, mask, sequences.prefix, said.vocabulary)]
        for _, part in prepared:
            _add_itself(base, part)
        for number, (model, stream, score) in enumerate(zip(models, streams[1:], scores, strict=True)):
            said = _Logits(next(stream), ids, mask, model, number)
            said.at(_unjudged(ids, mask, sequences.prefix))
            said.add(score, prepared)
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


def _parts(ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], prefix: int, vocabulary: int) -> Iterator[Places]:
    rows, columns = np.nonzero(_predicted(ids, mask, prefix))
    step = max(1, PART_BYTES // (4 * vocabulary))
    for start in range(0, len(rows), step):
        yield rows[start : start + step], columns[start : start + step]


def _unjudged(ids: npt.NDArray[np.int64], mask: npt.NDArray[np.int64], prefix: int) -> Places:
    """The tokens of which nothing is scored, the last of each row among them: they are to be finite all the same."""
    rest = mask.astype(bool)
    rest[:, :-1] &= ~_predicted(ids, mask, prefix)
    rows, columns = np.nonzero(rest)
    return rows, columns


@dataclass(frozen=True, slots=True)
class _Logits:
    """What a model said on one batch, float32 [batch, length, vocabulary]."""

    logits: Float32
    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    runner: Stream
    number: int | None = None

    @property
    def vocabulary(self) -> int:
        return int(self.logits.shape[-1])

    def prepared(self, at: Places) -> Part:
        """As a reference, in parts: what scoring makes of them would not fit for all tokens at once."""
        return at, reference_of(self.at(at), self.ids[at[0], at[1] + 1])

    def add(self, score: Score, prepared: Sequence[Part]) -> None:
        """Score it against a reference."""
        for at, reference in prepared:
            add_batch(score, self.at(at), reference)

    def at(self, places: Places) -> Float32:
        """Those of some tokens, [tokens, vocabulary]; -inf only where the graph rules out a token everywhere.

        Raises:
            LogitsNotFiniteError: others are NaN or infinite.
        """
        chosen: Float32 = self.logits[places]
        broken, ruled_out = not_finite(chosen)
        if broken.any():
            row = int(places[0][int(broken.argmax())])
            raise LogitsNotFiniteError(str(self.runner.path), self.number, self.ids[row][None], self.mask[row][None])
        if ruled_out.any():
            chosen[:, ruled_out] = RULED_OUT
        return chosen


class KlMeter:
    """KL against one reference on a few sequences, whose logits are computed once and kept.

    Args:
        reference: the floating-point model.
        sequences: what to measure on; fewer, and the beginnings of them, where their logits would not fit `memory`.
        memory: bytes that the kept logits may take.
    """

    def __init__(self, reference: Stream, sequences: Sequences, memory: int = 1 << 28) -> None:
        batches = list(sequences.batches(batch_size(reference, sequences)))
        self._batches = _fitting(batches, reference, memory)
        self._prefix = sequences.prefix
        self._logits = [np.array(logits) for logits in reference.stream(self._batches)]
        self._reference = reference
        self.tokens = int(sum(_predicted(ids, mask, self._prefix).sum() for ids, mask in self._batches))

    def kl(self, model: Stream) -> float:
        """Mean KL(reference || model), nats a token.

        Raises:
            LogitsNotFiniteError: logits of one of the two are NaN or infinite.
        """
        score = Score()
        streamed = zip(self._batches, self._logits, model.stream(self._batches), strict=True)
        for (ids, mask), base, logits in streamed:
            said = _Logits(base, ids, mask, self._reference)
            for part in _parts(ids, mask, self._prefix, said.vocabulary):
                _Logits(logits, ids, mask, model, 0).add(score, [said.prepared(part)])
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
