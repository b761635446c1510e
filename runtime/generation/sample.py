"""Text sampled from an ONNX decoder: it needs nothing beyond the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.sessions.cache import Decoding, Float32
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import ActivationError

BATCH = 32
_NAMED = "`spq-graph eval` on this file and a text says in which of its nodes that begins"


def sample_ids(
    runner: Runner,
    *,
    sequences: int,
    length: int,
    seed: int,
    bos: int | None,
    turns: Callable[[int], Callable[[Ids], Ids]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Ids:
    """Sample token sequences at temperature 1 from the full distribution (as LLM-QAT does, arXiv 2305.17888).

    Where the graph has no cache each token runs the whole sequence again: then this is quadratic in `length`.

    Args:
        runner: the decoder.
        sequences: how many.
        length: tokens in each, with the first one.
        seed: same seed, same tokens.
        bos: the first token; where None, a random one for each sequence.
        turns: makes for so many rows what says, position by position behind the first, which tokens stand where these
            were drawn, int64 [rows]; None for what was drawn.
        progress: called with tokens done and in all.

    Returns:
        Token ids, int64 [sequences, length].

    Raises:
        ActivationError: the logits are NaN or infinite.
    """
    generator = np.random.default_rng(seed)
    batch = runner.fixed_shape[0] or BATCH
    rows: list[Ids] = []
    for start in range(0, sequences, batch):
        count = runner.fixed_shape[0] or min(batch, sequences - start)
        ids = np.empty((count, length), dtype=np.int64)
        state, stands = Decoding(runner, count), turns(count) if turns is not None else None
        for position in range(length):
            ids[:, position] = _next(state, ids[:, :position], bos, generator)
            if position == 0:
                state = Decoding(runner, count)  # what stood in for a beginning is no part of the text
            elif stands is not None:
                ids[:, position] = stands(ids[:, position])
            if progress is not None:
                progress(start * length + (position + 1) * count, sequences * length)
        rows.append(ids)
    return np.concatenate(rows)[:sequences]


def _next(state: Decoding, before: Ids, bos: int | None, generator: np.random.Generator) -> Ids:
    if not before.size:
        if bos is not None:
            return np.full(len(before), bos)
        # Nothing is known yet: the distribution after token 0 stands in for the first token's.
        before = np.zeros((len(before), 1), dtype=np.int64)
    logits = finite(state.feed(before[:, -1:])[:, -1], state.where)
    # Gumbel's trick: the largest of logit + noise is a draw from the softmax.
    noise = generator.gumbel(size=logits.shape)
    return np.asarray((logits + noise).argmax(axis=-1), dtype=np.int64)


def finite(logits: Float32, where: str) -> npt.NDArray[np.float64]:
    """The logits of the next tokens, [rows, vocabulary], in double precision; single tokens may be ruled out by -inf.

    Raises:
        ActivationError: there is no finite one in a row, or NaN, or infinity.
    """
    wide = logits.astype(np.float64)
    if not np.isfinite(wide).any(axis=-1).all() or np.isnan(wide).any() or np.isposinf(wide).any():
        raise ActivationError("the logits are NaN or infinite", where=where, remedy=_NAMED)
    return wide
