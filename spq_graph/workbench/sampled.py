"""Text sampled from the model itself, for calibration without data: conversations, where it has a chat template."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from spq_graph.runtime.sessions.cache import cache_pairs
from spq_graph.runtime.text.chat import has_template
from spq_graph.runtime.text.sequences import Ids, Sequences
from spq_graph.runtime.text.turns import Conversation, Turns
from spq_graph.terms.errors import ActivationError
from spq_graph.workbench.answers import require_continuing, require_logits
from spq_graph.workbench.speaking import stop_ids
from spq_graph.workbench.steps import Tick
from spq_graph.workbench.workbench import Workbench

# Text sampled from the model is as slow as generation: this much of it settles ranges, and more is there on request.
SAMPLED_TOKENS = 8_192
SAMPLED_TOKENS_WITHOUT_CACHE = 4_096
# Of a row, what opens it and a user's turn may take: the rest is answers and further turns.
_OPENING, _QUESTION = 2, 4


def sampled(bench: Workbench, tokens: int | None, seed: int, *, chat: bool = True) -> Sequences:
    """Sequences sampled from the model itself, for calibration without data.

    Args:
        bench: the model.
        tokens: how many; None for as many as settle ranges.
        seed: same seed, same tokens.
        chat: whether they are conversations by the model's chat template, where it has one that takes them.

    Raises:
        GraphError: the model gives no logits, or cannot go on behind tokens that it insists on.
        ActivationError: the logits are NaN or infinite.
    """
    require_logits(bench, "text to sample from it", "pass --calibration FILE")
    if bench.source.kind != "folder":
        require_continuing(bench, "pass --calibration FILE")
    count, length = sampled_shape(bench, tokens)
    turns = _turns(bench, length) if chat else None
    origin = f"{count} sequences of {length} tokens sampled from the model, seed {seed}"
    if turns is not None:
        origin += ", as conversations by its chat template"
        bench.steps.remark("calibrating on conversations by the model's chat template: --no-chat samples plain text")
    with bench.steps.step("sample", "Sampling calibration text from the model itself") as tick:
        try:
            ids = _sample(bench, count, length, seed, turns, tick)
        except ActivationError as cause:
            # What was sampled is gone: any tokens of the vocabulary stand in for it.
            some = np.random.default_rng(seed).integers(0, bench.decoder.vocabulary or 2, (1, length))
            raise bench.not_finite(some, np.ones_like(some), "text sampled from the model") from cause
    return Sequences(ids, np.ones_like(ids), 1, origin)


def sampled_shape(bench: Workbench, tokens: int | None) -> tuple[int, int]:
    """How many sequences are sampled, and of how many tokens each."""
    cached = bench.source.kind == "folder" or cache_pairs(bench.runner)
    wanted = tokens or (SAMPLED_TOKENS if cached else SAMPLED_TOKENS_WITHOUT_CACHE)
    length = min(bench.sequence_length, 256)
    return max(1, wanted // length), length


def _turns(bench: Workbench, length: int) -> Turns | None:
    """What the template writes around turns; None, and told, where it has them for no row of this length."""
    tokenizer = bench.tokenizer
    if tokenizer is None or not has_template(tokenizer.folder):
        return None
    found = Turns.of(tokenizer, bos=bench.bos, stops=stop_ids(bench, tokenizer, chat=True))
    if found is None:
        why = "the chat template does not write plain turns of a user and an assistant"
    elif _OPENING * len(found.opening) > length:
        why = f"the chat template opens with {len(found.opening)} tokens, and a sequence has {length}"
    elif max(found.opening + found.to_answer + found.to_ask) >= (bench.decoder.vocabulary or math.inf):
        why = "the chat template has tokens that the model does not know"
    else:
        return found
    bench.steps.remark(f"calibrating on plain text sampled from the model: {why}")
    return None


def _sample(bench: Workbench, count: int, length: int, seed: int, turns: Turns | None, tick: Tick) -> Ids:
    bos = bench.tokenizer.bos_id if bench.tokenizer is not None else None
    bos = bench.source.bos_token_id if bos is None else bos
    first = bos if turns is None else turns.opening[0]
    rows = partial(Conversation, turns, longest=length // _QUESTION) if turns is not None else None
    if bench.source.kind == "folder":
        from spq_graph.models.sample import sample_ids as sample_in_torch

        return sample_in_torch(
            bench.source.path, sequences=count, length=length, seed=seed, bos=first, turns=rows, progress=tick
        )
    from spq_graph.runtime.generation.sample import sample_ids

    return sample_ids(bench.runner, sequences=count, length=length, seed=seed, bos=first, turns=rows, progress=tick)
