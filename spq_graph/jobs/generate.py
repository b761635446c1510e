"""Text that continues prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from spq_graph.documents.results import Generation
from spq_graph.runtime.generation.generate import Generated, Limits, OnEnd, OnToken, continue_prompts
from spq_graph.runtime.generation.sampling import Sampling
from spq_graph.runtime.text.streaming import InOrder, TextStream
from spq_graph.runtime.text.tokenizer import TextTokenizer, read_json
from spq_graph.terms.errors import DataError, UsageError
from spq_graph.workbench.answers import require_continuing, require_logits
from spq_graph.workbench.companions import companions
from spq_graph.workbench.naming import named_on
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A text to continue, its ids, and what comes of it."""

    text: str
    ids: list[int]
    stream: TextStream


def generate(
    model: Openable,
    prompts: str | Sequence[str],
    *,
    sampling: Sampling | None = None,
    max_new_tokens: int = 64,
    stops: Sequence[str] = (),
    write: Callable[[str], None] | None = None,
    steps: Steps | None = None,
) -> Generation:
    """Continue prompts.

    Args:
        model: an .onnx file, an OUT folder, a Hugging Face folder, or "reference".
        prompts: a text to continue, or several, as one batch.
        sampling: how tokens are chosen; None for always the likeliest.
        max_new_tokens: most tokens to add to each; the model's own length and stop tokens end it as well.
        stops: texts to end at; they are no part of what is generated.
        write: takes prompts and text as they arrive, one after the other.
        steps: times and shows what is done before there is text.

    Raises:
        SpqError: what is wrong, where, and what to do.
    """
    opening, sampling = Opening.of(model), sampling or Sampling()
    _require_tokenizer(opening)
    with opening.open(steps, find_sites=False) as bench:
        assert bench.tokenizer is not None  # it was just asked for
        text = bench.tokenizer
        given = [
            _Prompt(prompt, own := _encode(bench, text, prompt), TextStream(text, own, stops))
            for prompt in ((prompts,) if isinstance(prompts, str) else prompts)
        ]
        limits = Limits(max_new_tokens, _stop_ids(bench, text), bench.source.max_length)
        start = time.perf_counter()
        require_logits(bench, "text to generate", "export the model with its head")
        require_continuing(bench, "export the model with a free length, or with logits of every token")
        runner = bench.runner
        loaded = time.perf_counter() - start
        ids = [prompt.ids for prompt in given]
        _check_vocabulary(ids, runner.vocabulary, opening.name)
        with named_on(bench, ids):
            found = continue_prompts(runner, ids, sampling, limits, *_told(given, write or (lambda _: None)))
    return _result(opening.name, given, found, sampling, loaded)


def _told(prompts: list[_Prompt], write: Callable[[str], None]) -> tuple[OnToken, OnEnd]:
    """What hands text on as it arrives: to be called with each token, and at each end."""
    shown = InOrder(write, [prompt.text for prompt in prompts])

    def on_token(row: int, token: int) -> bool:
        stream = prompts[row].stream
        shown.add(row, stream.push(token))
        return stream.stopped

    def on_end(row: int) -> None:
        shown.add(row, prompts[row].stream.finish())
        shown.end(row)

    return on_token, on_end


def _result(name: str, prompts: list[_Prompt], found: Generated, sampling: Sampling, loaded: float) -> Generation:
    speed = found.tokens_per_second
    return Generation(
        model=name,
        prompts=[prompt.text for prompt in prompts],
        prompt_tokens=[len(prompt.ids) for prompt in prompts],
        texts=[prompt.stream.text for prompt in prompts],
        tokens=[row.tokens for row in found.rows],
        finish=[str(row.finish) for row in found.rows],
        cache=found.cached,
        sampling=asdict(sampling),
        prefill_seconds=round(found.prefill_seconds, 4),
        decode_seconds=round(found.decode_seconds, 4),
        tokens_per_second=None if speed is None else round(speed, 2),
        load_seconds=round(loaded, 4),
    )


def _require_tokenizer(opening: Opening) -> None:
    """Refuse a model that nothing makes tokens for, before it is opened."""
    found = opening.resolve(find_sites=False)
    if found.tokenizer is None and found.kind != "gguf":
        folder = Path(opening.source).parent
        beside = str(folder) if (folder / "tokenizer.json").is_file() else "DIR, the folder with tokenizer.json"
        raise UsageError("text needs a tokenizer", where=opening.name, remedy=f"pass --tokenizer {beside}")


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
            remedy="pass --tokenizer DIR with this model's own: the given one knows more tokens than the model",
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
