"""What a model said on a batch, where it is judged, and how it is scored against what a reference said there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.measures.asked import Asked, Places, Stream
from spq_graph.runtime.measures.finite import RULED_OUT, LogitsNotFiniteError, not_finite
from spq_graph.runtime.measures.score import Score

Float32: TypeAlias = npt.NDArray[np.float32]


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


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model said on one batch, float32 [batch, length, vocabulary].

    Attributes:
        number: of the model among those that are held against the reference; None for the reference.
    """

    logits: Float32
    batch: Asked
    model: Stream
    number: int | None = None

    @property
    def vocabulary(self) -> int:
        """How many tokens it tells of."""
        return int(self.logits.shape[-1])

    def parts(self) -> Iterator[tuple[Places, npt.NDArray[np.int64]]]:
        """Where it is judged and the tokens that follow there, as many at a time as are scored."""
        return self.batch.parts(max(1, PART_BYTES // (4 * self.vocabulary)))

    def references(self, first: int) -> Iterator[tuple[Places, Reference]]:
        """As a reference, part by part.

        Args:
            first: the number of the batch's first window.
        """
        return ((at, reference_of(self.at(at), targets, at[0] + first)) for at, targets in self.parts())

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
            raise LogitsNotFiniteError(str(self.model.path), self.number, ids, mask)
        if ruled_out.any():
            chosen[:, ruled_out] = RULED_OUT
        return chosen
