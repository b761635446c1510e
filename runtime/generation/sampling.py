"""The next token of each sequence from its logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import UsageError

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token, and the rest of this is then not looked at.
        top_k: only the so many likeliest tokens.
        top_p: of these, only the likeliest ones that reach this probability together.
        seed: same seed, same text, for each sequence whatever else runs beside it.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what means nothing.

        Raises:
            UsageError: a value lies outside of its range.
        """
        if not 0 <= self.temperature < float("inf"):
            raise UsageError(f"a temperature of {self.temperature}", remedy="--temperature 0 is greedy, 1 the model's.")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"the {self.top_k} likeliest tokens are none", remedy="--top-k 1 or more.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"a probability of {self.top_p}", remedy="--top-p above 0 and up to 1.")

    def generators(self, rows: int) -> list[np.random.Generator]:
        """A generator for each sequence."""
        return [np.random.default_rng([self.seed, row]) for row in range(rows)]


def choose(logits: Float64, sampling: Sampling, generators: list[np.random.Generator]) -> Ids:
    """The next tokens, int64 [rows], from logits [rows, vocabulary]."""
    if not sampling.temperature:
        return np.asarray(logits.argmax(axis=-1), dtype=np.int64)
    return np.array([_draw(row, sampling, draw) for row, draw in zip(logits, generators, strict=True)], dtype=np.int64)


def _draw(logits: Float64, sampling: Sampling, generator: np.random.Generator) -> int:
    order = np.argsort(-logits, kind="stable")[: sampling.top_k]
    # The largest is taken away first: a temperature near 0 would overflow otherwise.
    weights = np.exp((logits[order] - logits[order[0]]) / sampling.temperature)
    reached = np.cumsum(weights) / weights.sum()
    if sampling.top_p is not None:
        reached = reached[: int(np.searchsorted(reached, sampling.top_p)) + 1]
    point = generator.random() * reached[-1]
    return int(order[min(int(np.searchsorted(reached, point, side="right")), len(reached) - 1)])
