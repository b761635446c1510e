"""Logits that are no numbers: which, and what is raised of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import NotFiniteError

# What stands for -inf where a graph rules a token out: behind a softmax nothing is left of it either.
RULED_OUT = np.float32(-1e30)


class LogitsNotFiniteError(NotFiniteError):
    """Logits of a model are NaN or infinite.

    Args:
        where: the model's file.
        number: of the model among those that were scored; None for their reference.
        ids: what it is so on, int64 [batch, length]: one row where it is known which.
        mask: its mask, int64 [batch, length].
    """

    def __init__(self, where: str, number: int | None, ids: Ids, mask: Ids) -> None:
        super().__init__(
            "the logits are NaN or infinite",
            where=where,
            remedy="`spq-graph eval` on this file and a text says in which of its nodes that begins",
        )
        self.number, self.ids, self.mask = number, ids, mask


def not_finite(logits: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which rows of logits, [tokens, vocabulary], are not finite, and which tokens -inf rules out in all of them."""
    bad = ~np.isfinite(logits)
    broken, ruled_out = np.zeros(len(logits), dtype=np.bool_), np.zeros(logits.shape[-1], dtype=np.bool_)
    if bad.any():
        ruled_out |= (logits == -np.inf).all(axis=0)
        broken |= bad[:, ~ruled_out].any(axis=1) | ruled_out.all()
    return broken, ruled_out
