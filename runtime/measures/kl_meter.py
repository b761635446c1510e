"""KL of many models against one reference, on the same few tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.measures.asked import Asked, Stream, behind_every, behind_last, columns_of, gives_last_only
from spq_graph.runtime.measures.calibrate import batch_size
from spq_graph.runtime.measures.evaluate import nothing_to_predict
from spq_graph.runtime.measures.judged import Judged
from spq_graph.runtime.measures.kept import MEMORY, Float32, Kept, Place, place_for
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.text.sequences import Sequences


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
            raise nothing_to_predict(sequences, reference)
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
        self._columns = columns_of(reference, self._asked)
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

    def run(self, model: Stream, batches: int) -> None:
        """Run a model on the first batches, whatever it says."""
        for _ in self._parts(model, None, batches):
            pass

    def _parts(
        self, model: Stream, number: int | None = None, batches: int | None = None
    ) -> Iterator[tuple[npt.NDArray[np.int64], Float32]]:
        """The windows of predicted tokens and the logits there, [tokens, vocabulary], in the same parts each time."""
        first = 0
        asked = self._asked[:batches]
        streamed = model.stream([(batch.ids, batch.mask) for batch in asked], self._columns)
        for batch in asked:
            for some in batch.in_columns(self._columns):
                said = Judged(next(streamed), some, model, number)
                for at, _ in said.parts():
                    yield at[0] + first, said.at(at)
                del said  # what comes next is as large
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
