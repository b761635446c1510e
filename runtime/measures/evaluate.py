"""Perplexity, KL and agreement of several models on one text; FP logits are computed once a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.measures.asked import Asked, Places, Stream, asked, behind_every, behind_last, gives_last_only
from spq_graph.runtime.measures.calibrate import batch_size
from spq_graph.runtime.measures.finite import RULED_OUT, LogitsNotFiniteError, not_finite
from spq_graph.runtime.measures.kept import MEMORY, Float32, Kept, Place, place_for
from spq_graph.runtime.measures.said import Said
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.segmented import Progress
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import DataError


@dataclass(slots=True)
class Reference:
    """What the floating-point model says on one batch, kept in the form that scoring needs.

    Attributes:
        logits: float32 [tokens, vocabulary], of predicted tokens only.
        probabilities: their softmax, float32 [tokens, vocabulary].
        log_z: logarithm of the softmax's denominator, float64 [tokens].
        best: the token ranked first, int64 [tokens].
        targets: the tokens to predict, int64 [tokens].
        windows: the number of each token's window, int64 [tokens].
    """

    logits: Float32
    probabilities: Float32
    log_z: npt.NDArray[np.float64]
    best: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    windows: npt.NDArray[np.int64]


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
# What a processor's cache holds: twice as fast as parts that go through memory from one step to the next.
PART_BYTES = 2 << 20


def reference_of(
    logits: Float32, targets: npt.NDArray[np.int64], windows: npt.NDArray[np.int64] | None = None
) -> Reference:
    """Prepare the reference's logits, [tokens, vocabulary], for scoring; all of one window where none are named."""
    exponentials, log_z, best = _softmax(logits)
    exponentials /= exponentials.sum(axis=-1, keepdims=True)
    return Reference(logits, exponentials, log_z, best, targets, np.zeros_like(targets) if windows is None else windows)


def add_batch(score: Score, logits: Float32, reference: Reference) -> None:
    """Score one batch of logits, [tokens, vocabulary].

    KL(p || q) = sum p (l_p - l_q) - (log Z_p - log Z_q): the difference of the logits is taken first, so that nothing
    cancels where the two models are close.
    """
    exponentials, log_z, best = _softmax(logits)
    nll = log_z - logits[np.arange(len(logits)), reference.targets]
    difference = np.subtract(reference.logits, logits, out=exponentials)
    mean = np.einsum("tv,tv->t", reference.probabilities, difference)
    score.add(reference.windows, nll, mean - (reference.log_z - log_z), int((best == reference.best).sum()))


def score_text(
    reference: Stream,
    models: Sequence[Stream],
    sequences: Sequences,
    progress: Progress | None = None,
    said: Said | None = None,
) -> tuple[Score, list[Score]]:
    """Score a reference and several models on the same tokens: on one a window, where one gives logits of no more.

    With `said`, what the reference says is kept for the next call, which then need not run it.

    Returns:
        The reference's score, whose KL is 0 and agreement 1, and the models' in their order.

    Raises:
        DataError: there is no token to predict, or a model has another vocabulary than the reference.
        LogitsNotFiniteError: a model's logits are NaN or infinite.
    """
    base, scores = Score(), [Score() for _ in models]
    done = 0
    batches = asked(reference, models, sequences)
    run = [(batch.ids, batch.mask) for batch in batches]
    streams = [said.stream(reference, run) if said is not None else reference.stream(run)]
    streams += [model.stream(run) for model in models]
    for batch in batches:
        of_reference = _Logits(next(streams[0]), batch, reference)
        of_reference.at(batch.unjudged)
        for _, part in (prepared := of_reference.prepared(done)):
            _add_itself(base, part)
        for number, (model, stream, score) in enumerate(zip(models, streams[1:], scores, strict=True)):
            of_model = _Logits(next(stream), batch, model, number)
            _refuse_other_vocabulary(of_model.logits, prepared, model, reference)
            of_model.at(batch.unjudged)
            of_model.add(score, prepared)
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
    rows = np.arange(len(reference.targets))
    nll = reference.log_z - reference.logits[rows, reference.targets]
    score.add(reference.windows, nll, agreed=len(rows))


def _step(logits: Float32) -> int:
    """How many tokens are scored at a time."""
    return max(1, PART_BYTES // (4 * int(logits.shape[-1])))


@dataclass(frozen=True, slots=True)
class _Logits:
    """What a model said on one batch, float32 [batch, length, vocabulary].

    Attributes:
        number: of the model among those that are held against the reference; None for the reference.
    """

    logits: Float32
    batch: Asked
    runner: Stream
    number: int | None = None

    def prepared(self, first: int) -> list[Part]:
        """As a reference, in parts: what scoring makes of them would not fit for all tokens at once.

        Args:
            first: the number of the batch's first window.
        """
        parts = self.batch.parts(_step(self.logits))
        return [(at, reference_of(self.at(at), targets, at[0] + first)) for at, targets in parts]

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
            ids, mask = self.batch.ids[row][None], self.batch.mask[row][None]
            raise LogitsNotFiniteError(str(self.runner.path), self.number, ids, mask)
        if ruled_out.any():
            chosen[:, ruled_out] = RULED_OUT
        return chosen


class KlMeter:
    """KL against one reference on a few sequences, whose log-probabilities are computed once and kept.

    They are kept in float32 where that fits `memory`, and otherwise in half precision, in memory or in a file: `Kept`
    says at what error. Where neither has room for all of them, fewer windows are measured on, or the beginning of the
    first: what follows changes no token.

    Args:
        reference: the floating-point model.
        sequences: what to measure on.
        memory: bytes that what is kept may take.
        folder: where a file may be written; None for nowhere.

    Attributes:
        tokens: how many are predicted.
        fits: how many tokens there was room for; None where that was all of them.
    """

    def __init__(
        self, reference: Stream, sequences: Sequences, memory: int = MEMORY, folder: Path | None = None
    ) -> None:
        if gives_last_only(reference):
            batches = list(behind_last(sequences, reference.fixed_shape, judged=False))
        else:
            # Half of what runs alone: several run side by side, also where few are asked for.
            rows = reference.fixed_shape[0] or max(1, batch_size(reference, sequences) // 2)
            whole = sequences.batches(rows)
            batches = [behind_every(ids, mask, sequences.prefix) for ids, mask in whole]
        asked_for = sum(len(batch.targets) for batch in batches)
        if not asked_for:
            raise _nothing(sequences, reference)
        vocabulary = reference.vocabulary or _vocabulary_of(reference, batches[0])
        place = place_for(asked_for, vocabulary, memory, folder)
        try:
            self._keep(reference, batches, place)
        except OSError:  # the disk filled up meanwhile
            place = place_for(asked_for, vocabulary, memory, None)
            self._keep(reference, batches, place)
        self.fits = place.tokens
        self.tokens = sum(len(batch.targets) for batch in self._asked)

    def _keep(self, reference: Stream, batches: Sequence[Asked], place: Place) -> None:
        self._asked = list(batches) if place.tokens is None else _fitting(batches, place.tokens)
        self._kept = Kept(place)
        for _, logits in self._parts(reference):
            self._kept.add(logits)
        self._kept.finish()

    def tokens_of(self, batches: int) -> int:
        """How many tokens are predicted in so many batches."""
        return sum(len(batch.targets) for batch in self._asked[:batches])

    def batches_of(self, tokens: int) -> int:
        """The fewest batches in which so many tokens are predicted."""
        return next((n for n in range(1, len(self._asked)) if self.tokens_of(n) >= tokens), len(self._asked))

    def _parts(
        self, model: Stream, number: int | None = None, batches: int | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], Float32]]:
        """The windows of predicted tokens and the logits there, [tokens, vocabulary], in the same parts each time."""
        first = 0
        asked = self._asked[:batches]
        streamed = model.stream([(batch.ids, batch.mask) for batch in asked])
        for batch, logits in zip(asked, streamed, strict=True):
            said = _Logits(logits, batch, model, number)
            for at, _ in batch.parts(_step(logits)):
                yield at[0] + first, said.at(at)
            first += len(batch.ids)

    def score(self, model: Stream, batches: int | None = None) -> Score:
        """KL(reference || model) of a model, and nothing else of it; on the first batches only, where so many are said.

        Raises:
            LogitsNotFiniteError: logits of the model are NaN or infinite.
        """
        score = Score()
        for part, (windows, logits) in enumerate(self._parts(model, 0, batches)):
            score.add(windows, kl=self._kept.kl(part, logits))
        return score

    def kl(self, model: Stream) -> float:
        """Mean KL(reference || model), nats a token; raises as `score`."""
        return self.score(model).kl


def _vocabulary_of(reference: Stream, batch: Asked) -> int:
    """What a run shows of a graph that does not state it."""
    return int(next(iter(reference.stream([(batch.ids[:1], batch.mask[:1])]))).shape[-1])


def _fitting(batches: Sequence[Asked], tokens: int) -> list[Asked]:
    """So many of the tokens that are judged, from the first on."""
    kept: list[Asked] = []
    for batch in batches:
        if tokens <= 0:
            break
        kept.append(batch.first(tokens))
        tokens -= len(batch.targets)
    return kept
