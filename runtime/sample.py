"""Text sampled from an ONNX decoder that has no cache: slow, but it needs nothing beyond the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spq_graph.errors import ActivationError
from spq_graph.runtime.sequences import Ids
from spq_graph.runtime.session import Runner

BATCH = 32


def sample_ids(
    runner: Runner,
    *,
    sequences: int,
    length: int,
    seed: int,
    bos: int | None,
    progress: Callable[[int, int], None] | None = None,
) -> Ids:
    """Sample token sequences at temperature 1 from the full distribution (as LLM-QAT does, arXiv 2305.17888).

    Without a cache each token runs the whole sequence again, so this is quadratic in `length`.

    Args:
        runner: the decoder.
        sequences: how many.
        length: tokens in each, with the first one.
        seed: same seed, same tokens.
        bos: the first token; where None, a random one for each sequence.
        progress: called with tokens done and in all.

    Returns:
        Token ids, int64 [sequences, length].

    Raises:
        ActivationError: the logits are NaN or infinite.
    """
    generator = np.random.default_rng(seed)
    batch, fixed = runner.fixed_shape
    rows: list[Ids] = []
    for start in range(0, sequences, batch or BATCH):
        count = batch or min(BATCH, sequences - start)
        ids = np.zeros((count, fixed or length), dtype=np.int64)
        for position in range(length):
            if position == 0 and bos is not None:
                ids[:, 0] = bos
            else:
                ids[:, position] = _next(runner, ids, position, fixed, generator)
            if progress is not None:
                progress(start * length + (position + 1) * count, sequences * length)
        rows.append(ids[:, :length])
    return np.concatenate(rows)[:sequences]


def _next(runner: Runner, ids: Ids, position: int, fixed: int | None, generator: np.random.Generator) -> Ids:
    # At position 0 nothing is known: the distribution after token 0 stands in for the first token's.
    end = max(position, 1)
    shown = ids if fixed else ids[:, :end]
    mask = np.zeros_like(shown)
    mask[:, :end] = 1
    logits = runner.logits(shown, mask)[:, end - 1].astype(np.float64)
    if not np.isfinite(logits).any(axis=-1).all() or np.isnan(logits).any():
        raise ActivationError("the logits are NaN or infinite", where=str(runner.path), remedy="check the weights")
    # Gumbel's trick: the largest of logit + noise is a draw from the softmax.
    noise = generator.gumbel(size=logits.shape)
    return np.asarray((logits + noise).argmax(axis=-1), dtype=np.int64)
