"""Text sampled from the model itself, which calibrates it where no data is given."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from spq_graph.models.chatter import quiet
from spq_graph.models.loading import load_causal_lm
from spq_graph.terms.errors import ActivationError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

Progress = Callable[[int, int], None]
# What says, position by position behind the first, which tokens stand where these were drawn: int64 [rows] both.
Stands = Callable[[NDArray[np.int64]], NDArray[np.int64]]
BATCH: Final = 64
# Steps that are timed: so many in any case, and more until so much time is over, of which the later half counts.
_TIMED: Final = 4
_STEPS: Final = 32
_SECONDS: Final = 0.5
# Weights of a model that one thread runs as fast as several, which wait for one another hundreds of times a token: on a
# machine with other work each time for a turn of the processor, and sampling took twenty times as long.
_SMALL: Final = 20_000_000


def sample_ids(
    folder: Path,
    *,
    sequences: int,
    length: int,
    seed: int,
    bos: int | None,
    turns: Callable[[int], Stands] | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Samples token sequences from the model in `folder`.

    A model's own text stands in for the data that it was trained on and that nobody has at hand: LLM-QAT
    (arXiv 2305.17888) calibrates and trains on nothing else. Drawn at temperature 1 from the full distribution, so that
    rare tokens come as often as the model holds them to be.

    Args:
        folder: a Hugging Face folder.
        sequences: how many.
        length: tokens in each, the first one included.
        seed: same seed, same tokens. The caller's random state is left alone.
        bos: the first token; where None, what the configuration has for BOS, or else EOS, or else token 0.
        turns: makes for so many rows what says which tokens stand where others were drawn; None for what was drawn.
        progress: called with tokens done and in all.

    Returns:
        Token ids, int64 [sequences, length]. Without turns EOS never follows the first token, so that no sequence ends
        early.

    Raises:
        SourceError: the folder cannot be loaded.
        UsageError: a size below 1, or more tokens than the model has positions.
        ActivationError: the logits are NaN or infinite.
    """
    if sequences < 1 or length < 1:
        raise UsageError(f"nothing to sample: {sequences} sequences of {length} tokens", remedy="Ask for at least 1.")
    model = load_causal_lm(folder)
    return sample_from(model, sequences=sequences, length=length, seed=seed, bos=bos, turns=turns, progress=progress)


def sample_from(
    model: PreTrainedModel,
    *,
    sequences: int,
    length: int,
    seed: int,
    bos: int | None,
    turns: Callable[[int], Stands] | None = None,
    progress: Progress | None = None,
) -> NDArray[np.int64]:
    """Does what `sample_ids` does, with a model that is loaded already."""
    import torch

    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and length > positions:
        raise UsageError(
            f"{length} tokens in a sequence, and the model has {positions} positions", remedy="Ask for shorter ones."
        )
    first = start_token(model.config) if bos is None else bos
    generator = torch.Generator().manual_seed(seed)
    batches = []
    with _threads_for(model):
        for done in range(0, sequences, BATCH):
            count = min(BATCH, sequences - done)

            def tick(tokens: int, done: int = done, count: int = count) -> None:
                if progress is not None:
                    progress(done * length + tokens * count, sequences * length)

            start = torch.full((count, 1), first, dtype=torch.int64)
            stands = turns(count) if turns is not None else None
            batches.append(continue_from(model, start, length, generator, stands, tick))
    ids: NDArray[np.int64] = torch.cat(batches).numpy()
    return ids


def seconds_to_sample(folder: Path, *, sequences: int, length: int) -> float:
    """What `sample_ids` would take: loading, and a few tokens timed behind half a sequence.

    Args:
        folder: a Hugging Face folder.
        sequences: how many.
        length: tokens in each.

    Raises:
        SpqError: as `sample_ids`.
    """
    import torch

    start = time.perf_counter()
    model = load_causal_lm(folder)
    loaded = time.perf_counter() - start
    token = torch.full((min(BATCH, sequences), 1), start_token(model.config), dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    seconds: list[float] = []
    most = max(1, min(_STEPS, length - length // 2))  # a model has so many positions
    with quiet(), torch.inference_mode(), _threads_for(model):
        cache = _behind(model, token, max(1, length // 2))
        while len(seconds) < most and (len(seconds) < _TIMED or sum(seconds) < _SECONDS):
            start = time.perf_counter()
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            token, cache = _drawn(output.logits[:, -1].float(), generator), output.past_key_values
            seconds.append(time.perf_counter() - start)
    return loaded + -(-sequences // BATCH) * length * statistics.median(seconds[len(seconds) // 2 :])


@contextmanager
def _threads_for(model: PreTrainedModel) -> Iterator[None]:
    """A block in which torch has as many threads as a model of this size has use for."""
    import torch

    before = torch.get_num_threads()
    if model.num_parameters() <= _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _behind(model: PreTrainedModel, token: Tensor, length: int) -> Any:
    """A cache of so many tokens, the same in every row: one row is run, where its cache can stand for those of all."""
    rows = len(token)
    cache = model(input_ids=token[:1].expand(1, length), use_cache=True).past_key_values
    if not hasattr(cache, "batch_repeat_interleave"):
        return model(input_ids=token.expand(rows, length), use_cache=True).past_key_values
    cache.batch_repeat_interleave(rows)
    return cache


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    import torch

    return torch.multinomial(logits.softmax(-1), 1, generator=generator)


def start_token(config: Any) -> int:
    """Returns what a sequence starts with: BOS, or else EOS (as in GPT-2's family), or else token 0."""
    return next(iter(_ids(config.bos_token_id) or _ids(config.eos_token_id)), 0)


def _ids(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def continue_from(
    model: PreTrainedModel,
    ids: Tensor,
    length: int,
    generator: torch.Generator,
    stands: Stands | None = None,
    tick: Callable[[int], None] | None = None,
) -> Tensor:
    """Extends `ids`, int64 [batch, prompt], to [batch, length] over the KV cache.

    `stands` says which tokens stand where others were drawn; without it EOS is never drawn. `tick` is told how many
    tokens each row has.
    """
    import torch

    ends = _ids(model.config.eos_token_id)
    token, cache = ids, None
    with quiet(), torch.inference_mode():
        while ids.shape[1] < length:
            output = model(input_ids=token, past_key_values=cache, use_cache=True)
            logits, cache = output.logits[:, -1].float(), output.past_key_values
            if not bool(torch.isfinite(logits).all()):
                raise ActivationError(
                    "the logits are NaN or infinite, so the model cannot be sampled",
                    where=f"position {ids.shape[1] - 1}",
                    remedy="Check the weights, or give calibration data to learn which layer it starts in.",
                )
            if stands is None:
                logits[:, ends] = -torch.inf
            token = _drawn(logits, generator)
            if stands is not None:
                token = torch.from_numpy(stands(token[:, 0].numpy()))[:, None]
            ids = torch.cat([ids, token], dim=1)
            if tick is not None:
                tick(ids.shape[1])
    return ids
