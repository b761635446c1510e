"""Perplexity, KL and agreement of several models on one text; FP logits are computed once a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from spq_graph.runtime.measures.asked import MOST_LOGITS, Places, Stream, asked
from spq_graph.runtime.measures.judged import Judged, Reference, add_batch
from spq_graph.runtime.measures.said import Said
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.segmented import Progress
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import DataError

# Logits of a batch, of which what scoring makes is kept for the next model.
MOST_KEPT = MOST_LOGITS


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
        of_reference = Judged(next(streams[0]), batch, reference)
        of_reference.refuse_not_finite()
        prepared = _Prepared(of_reference, done)
        for _, part in prepared:
            _add_itself(base, part)
        for number, (model, stream, score) in enumerate(zip(models, streams[1:], scores, strict=True)):
            of_model = Judged(next(stream), batch, model, number)
            _refuse_other_vocabulary(of_model, of_reference)
            of_model.at(batch.unjudged)
            for at, part in prepared:
                add_batch(score, of_model.at(at), part)
        done += len(batch.ids)
        if progress is not None:
            progress(done, len(sequences))
    if not base.tokens:
        raise nothing_to_predict(sequences, reference)
    return base, scores


class _Prepared:
    """A reference in parts, for one model after the other: kept where they are small, and otherwise made each time.

    What scoring makes of logits is as large as these once more; of a large vocabulary, that does not fit for a window.
    """

    def __init__(self, judged: Judged, first: int) -> None:
        self._judged, self._first = judged, first
        self._kept: list[tuple[Places, Reference]] | None = None
        if judged.logits.nbytes <= MOST_KEPT:
            self._kept = list(judged.references(first))

    def __iter__(self) -> Iterator[tuple[Places, Reference]]:
        return iter(self._kept) if self._kept is not None else self._judged.references(self._first)


def nothing_to_predict(sequences: Sequences, stream: Stream) -> DataError:
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


def _refuse_other_vocabulary(model: Judged, reference: Judged) -> None:
    if model.vocabulary != reference.vocabulary and len(reference.batch.targets):
        raise DataError(
            f"the two models have vocabularies of {model.vocabulary} and {reference.vocabulary} tokens, and cannot be "
            "compared",
            where=f"{model.model.path}, {reference.model.path}",
            remedy="leave out --against, and measure each of them alone",
        )


def _add_itself(score: Score, reference: Reference) -> None:
    rows = np.arange(len(reference.targets))
    nll = reference.log_z - reference.logits[rows, reference.targets]
    score.add(reference.windows, nll, agreed=len(rows))
