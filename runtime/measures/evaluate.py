"""Perplexity, KL and agreement of several models on one text; FP logits are computed once a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spq_graph.runtime.measures.asked import Stream, asked, columns_of
from spq_graph.runtime.measures.judged import Judged, Reference, add_batch
from spq_graph.runtime.measures.said import Said
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.segmented import Progress
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import DataError


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
    columns = columns_of(reference, batches)
    streams = [said.stream(reference, run, columns) if said is not None else reference.stream(run, columns)]
    streams += [model.stream(run, columns) for model in models]
    for batch in batches:
        for some in batch.in_columns(columns):
            of_reference = Judged(next(streams[0]), some, reference)
            of_reference.at(some.unjudged)
            prepared = list(of_reference.references(done))
            for _, part in prepared:
                _add_itself(base, part)
            for number, (model, stream, score) in enumerate(zip(models, streams[1:], scores, strict=True)):
                of_model = Judged(next(stream), some, model, number)
                _refuse_other_vocabulary(of_model, of_reference)
                of_model.at(some.unjudged)
                for at, part in prepared:
                    add_batch(score, of_model.at(at), part)
                del of_model
            del of_reference, prepared  # what comes next is as large
        done += len(batch.ids)
        if progress is not None:
            progress(done, len(sequences))
    if not base.tokens:
        raise nothing_to_predict(sequences, reference)
    return base, scores


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
