"""Sequences continued token by token until each has met its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from spq_graph.runtime.generation.sample import finite
from spq_graph.runtime.generation.sampling import Sampling, choose
from spq_graph.runtime.sessions.cache import Decoding, Float32
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import UsageError

# Logits of one piece of a prompt, all of which but the last row are dropped: 128 MiB.
_PREFILL_LOGITS = 2**25


class Finish(StrEnum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    MODEL_LENGTH = "model_length"


@dataclass(frozen=True, slots=True)
class Limits:
    """When a sequence ends.

    Attributes:
        new_tokens: most tokens to add, at least 1.
        stop_ids: tokens that end it, and are no part of it.
        length: most tokens that the model takes, prompt included; None where nothing says.
    """

    new_tokens: int = 64
    stop_ids: frozenset[int] = frozenset()
    length: int | None = None


@dataclass(slots=True)
class Continuation:
    """What was added to one prompt."""

    tokens: list[int] = field(default_factory=list)
    finish: Finish | None = None


@dataclass(slots=True)
class Generated:
    """What came of some prompts.

    Attributes:
        rows: by prompt.
        cached: whether the graph's cache was used.
        prefill_seconds: until the first token of each was known.
        decode_seconds: from there to the end.
        decoded: tokens that took `decode_seconds`.
    """

    rows: list[Continuation]
    cached: bool = True
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    decoded: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Of all sequences together, prompts apart; None where there was nothing to time."""
        return self.decoded / self.decode_seconds if self.decoded else None


OnToken = Callable[[int, int], bool]
"""Is told of each new token, by prompt, and says whether that one is to stop behind it."""
OnEnd = Callable[[int], None]
"""Is told of each prompt that is done."""


def continue_prompts(
    runner: Runner,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    limits: Limits,
    on_token: OnToken,
    on_end: OnEnd = lambda _: None,
) -> Generated:
    """Continue prompts.

    They run as one batch, padded on the left; one after the other where the graph would take padding for text.

    Args:
        runner: the decoder.
        prompts: token ids of each, at least one.
        sampling: how tokens are chosen.
        limits: when to end.
        on_token: is told of every token; one that ends a sequence is not among them.
        on_end: is told of every sequence that has ended.

    Raises:
        UsageError: a prompt fills the model's length.
        ActivationError: the logits are NaN or infinite.
    """
    _check_lengths(runner, prompts, limits)
    found = Generated([Continuation() for _ in prompts])
    generators = sampling.generators(len(prompts))
    together = runner.takes_padding or len({len(prompt) for prompt in prompts}) == 1
    step = (runner.fixed_shape[0] or len(prompts)) if together else 1
    for start in range(0, len(prompts), step):
        rows = range(start, min(start + step, len(prompts)))
        batch = _Batch(runner, [prompts[row] for row in rows], rows, limits, on_token, on_end)
        batch.run(sampling, generators[rows.start : rows.stop], found)
    return found


def _check_lengths(runner: Runner, prompts: Sequence[Sequence[int]], limits: Limits) -> None:
    """Refuse a prompt that leaves no room.

    Raises:
        UsageError: it is as long as the model or the graph takes.
    """
    lengths = [n for n in (limits.length, runner.fixed_shape[1]) if n is not None]
    longest = max(map(len, prompts))
    if lengths and longest >= min(lengths):
        raise UsageError(
            f"the prompt has {longest} tokens, and the model takes {min(lengths)}, those it adds included",
            remedy="shorten the prompt",
        )


class _Batch:
    """Prompts that run together.

    Args:
        runner: the decoder.
        prompts: token ids of each.
        places: theirs among all prompts.
        limits: when they end.
        on_token: is told of every token.
        on_end: is told of every end.
    """

    def __init__(
        self,
        runner: Runner,
        prompts: Sequence[Sequence[int]],
        places: range,
        limits: Limits,
        on_token: OnToken,
        on_end: OnEnd,
    ) -> None:
        self._state = Decoding(runner, len(prompts))
        self._places, self._limits, self._on_token, self._on_end = places, limits, on_token, on_end
        self._lengths = [len(prompt) for prompt in prompts]
        self._columns = runner.fixed_shape[1]
        longest = max(self._lengths)
        self._mask: Ids = np.array([[0] * (longest - n) + [1] * n for n in self._lengths], dtype=np.int64)
        self._ids = np.zeros_like(self._mask)
        self._ids[self._mask == 1] = [token for prompt in prompts for token in prompt]
        # Without a cache a piece would run all that came before it once more.
        piece = _PREFILL_LOGITS // (len(prompts) * (runner.vocabulary or 1))
        self._piece = max(1, piece) if self._state.cached else longest

    def run(self, sampling: Sampling, generators: list[np.random.Generator], found: Generated) -> None:
        """Go on until every sequence has ended."""

        def pick(logits: Float32) -> Ids:
            return choose(finite(logits, self._state.where), sampling, generators)

        rows = [found.rows[place] for place in self._places]
        found.cached = self._state.cached
        start = time.perf_counter()
        tokens = pick(self._prefill())
        self._accept(tokens, rows)
        begun, ready = time.perf_counter(), sum(len(row.tokens) for row in rows)
        found.prefill_seconds += begun - start
        while any(row.finish is None for row in rows):
            # Those that have ended run along as padding, so that their positions stay where the model has some: to take
            # them out of the cache would copy it.
            alive = np.array([[row.finish is None] for row in rows], dtype=np.int64)
            tokens = pick(self._state.feed(tokens[:, None], alive)[:, -1])
            self._accept(tokens, rows)
        found.decode_seconds += time.perf_counter() - begun
        found.decoded += sum(len(row.tokens) for row in rows) - ready

    def _prefill(self) -> Float32:
        """Run the prompts; returns the logits behind their last tokens, [rows, vocabulary]."""
        starts = range(0, self._ids.shape[1], self._piece)
        for start in starts[:-1]:
            piece = slice(start, start + self._piece)
            self._state.feed(self._ids[:, piece], self._mask[:, piece])
        return self._state.feed(self._ids[:, starts[-1] :], self._mask[:, starts[-1] :])[:, -1]

    def _accept(self, tokens: Ids, rows: list[Continuation]) -> None:
        for place, length, token, row in zip(self._places, self._lengths, tokens.tolist(), rows, strict=True):
            if row.finish is None:
                row.finish = self._judge(place, length, token, row)
                if row.finish is not None:
                    self._on_end(place)

    def _judge(self, place: int, length: int, token: int, row: Continuation) -> Finish | None:
        """Add a token to a sequence, unless it ends it; returns why it has ended, if it has."""
        limits = self._limits
        if token in limits.stop_ids:
            return Finish.STOP
        row.tokens.append(token)
        if self._on_token(place, token):
            return Finish.STOP
        if len(row.tokens) >= limits.new_tokens:
            return Finish.LENGTH
        full = self._columns is not None and self._ids.shape[1] + len(row.tokens) >= self._columns
        if full or (limits.length is not None and length + len(row.tokens) >= limits.length):
            return Finish.MODEL_LENGTH
        return None
