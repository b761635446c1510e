"""Text that continues prompts, as `generate` prints it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from spq_graph.errors import DataError, UsageError
from spq_graph.measuring import open_model
from spq_graph.pipeline import companions
from spq_graph.progress import Steps
from spq_graph.runtime.generate import Finish, Generated, Limits
from spq_graph.runtime.generate import generate as run
from spq_graph.runtime.sampling import Sampling
from spq_graph.runtime.streaming import InOrder, TextStream
from spq_graph.runtime.tokenizer import TextTokenizer, read_json
from spq_graph.workbench import Workbench


def generate(
    path: str,
    prompts: tuple[str, ...],
    steps: Steps,
    *,
    sampling: Sampling,
    limits: Limits,
    stops: tuple[str, ...] = (),
    tokenizer: Path | None = None,
    bos: bool = False,
    write: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Continue prompts.

    Args:
        path: an .onnx file, an OUT folder, a Hugging Face folder, or "reference".
        prompts: texts to continue, one batch.
        steps: times and shows what is done before there is text.
        sampling: how tokens are chosen.
        limits: when to end; the model's own length and stop tokens are added here.
        stops: texts to end at; they are no part of what is generated.
        tokenizer: folder with tokenizer.json, where `path` holds none.
        bos: prepend BOS even where the tokenizer does not.
        write: takes prompts and text as they arrive, one after the other.

    Returns:
        What `generate --json` prints: by prompt `prompts`, `prompt_tokens` (how many), `texts`, `tokens` (ids) and
        `finish` (stop, length, or model_length: the model takes no more); `cache` (whether it was used), `sampling`,
        `load_seconds`, `prefill_seconds`, `decode_seconds` and `tokens_per_second` (of decoding; null where all there
        was came with the prefill).

    Raises:
        SpqError: what is wrong, where, and what to do.
    """
    with open_model(path, tokenizer, steps, bos, None) as bench:
        text = _tokenizer(bench, path)
        ids = [_encode(bench, text, prompt) for prompt in prompts]
        limits = replace(limits, stop_ids=_stop_ids(bench, text), length=bench.source.max_length)
        start = time.perf_counter()
        runner = bench.runner
        loaded = time.perf_counter() - start
        _check_vocabulary(ids, runner.vocabulary, path)
        streams = [TextStream(text, prompt, stops) for prompt in ids]
        shown = InOrder(write or (lambda _: None), prompts)

        def on_token(row: int, token: int) -> bool:
            shown.add(row, streams[row].push(token))
            return streams[row].stopped

        def on_end(row: int) -> None:
            shown.add(row, streams[row].finish())
            shown.end(row)

        found = run(runner, ids, sampling, limits, on_token, on_end)
    return _facts(path, prompts, ids, streams, found, sampling) | {"load_seconds": round(loaded, 4)}


def _tokenizer(bench: Workbench, path: str) -> TextTokenizer:
    if bench.tokenizer is None:
        raise UsageError(
            "text needs a tokenizer", where=path, remedy="pass --tokenizer DIR, or the OUT folder instead of its file"
        )
    return bench.tokenizer


def _encode(bench: Workbench, tokenizer: TextTokenizer, prompt: str) -> list[int]:
    """A prompt's ids, what the tokenizer prepends first; an empty one is a beginning, where the model has one."""
    ids = [*tokenizer.prepended(bench.bos), *tokenizer.encode(prompt)]
    first = tokenizer.bos_id if tokenizer.bos_id is not None else bench.source.bos_token_id
    if not ids and first is None:
        raise UsageError("the prompt has no tokens", remedy="this model knows no beginning: give it some text")
    return ids or [first or 0]


def _check_vocabulary(ids: list[list[int]], size: int | None, path: str) -> None:
    if size is not None and max(map(max, ids)) >= size:
        raise DataError(
            f"a prompt has tokens outside of the vocabulary of {size}",
            where=path,
            remedy="this is another model's tokenizer",
        )


def _stop_ids(bench: Workbench, tokenizer: TextTokenizer) -> frozenset[int]:
    """Tokens that end a text, from the first file that names any."""
    folder = companions(bench.source)
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        ids = [i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int)]
        if ids:
            return frozenset(ids)
    return frozenset() if tokenizer.eos_id is None else frozenset({tokenizer.eos_id})


def _facts(
    path: str,
    prompts: tuple[str, ...],
    ids: list[list[int]],
    streams: list[TextStream],
    found: Generated,
    sampling: Sampling,
) -> dict[str, Any]:
    speed = found.tokens_per_second
    return {
        "model": path,
        "prompts": list(prompts),
        "prompt_tokens": [len(prompt) for prompt in ids],
        "texts": [stream.text for stream in streams],
        "tokens": [row.tokens for row in found.rows],
        "finish": [row.finish for row in found.rows],
        "cache": found.cached,
        "sampling": {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        },
        "prefill_seconds": round(found.prefill_seconds, 4),
        "decode_seconds": round(found.decode_seconds, 4),
        "tokens_per_second": None if speed is None else round(speed, 2),
    }


def describe(found: dict[str, Any]) -> str:
    """How it went, in a line for people."""
    tokens, speed = sum(map(len, found["tokens"])), found["tokens_per_second"]
    parts = [f"{tokens} tokens" + ("" if speed is None else f", {speed:.1f} a second")]
    if not found["cache"]:
        parts.append("this graph has no KV cache, so every token ran all of the text again")
    if Finish.MODEL_LENGTH in found["finish"]:
        parts.append("the model's length is reached")
    return "; ".join(parts)
