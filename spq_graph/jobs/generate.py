"""Text that continues prompts, or answers them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict

from spq_graph.documents.results import Generation
from spq_graph.runtime.generation.generate import Generated
from spq_graph.runtime.generation.sampling import Sampling
from spq_graph.runtime.text.chat import has_template
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.speaking import Prompt, Speaker, refuse_wordless, require_tokenizer
from spq_graph.workbench.steps import Steps

_INSTEAD = "leave out --chat and --system to continue the prompt as it is"


def generate(
    model: Openable,
    prompts: str | Sequence[str],
    *,
    chat: bool | None = None,
    system: str | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = 64,
    stops: Sequence[str] = (),
    write: Callable[[str], None] | None = None,
    steps: Steps | None = None,
) -> Generation:
    """Continue prompts, or answer them.

    Args:
        model: an .onnx file, an OUT folder, a Hugging Face folder, or "reference".
        prompts: a text to continue, or several, as one batch.
        chat: whether each is what a user says, put into the words of the model's chat template; None for where the
            model has one, or something is said by `system`.
        system: what the model is told before a user speaks.
        sampling: how tokens are chosen; None for always the likeliest.
        max_new_tokens: most tokens to add to each; the model's own length and stop tokens end it as well.
        stops: texts to end at; they are no part of what is generated.
        write: takes prompts and text as they arrive, one after the other; of what a user says only where there are
            several.
        steps: times and shows what is done.

    Raises:
        SpqError: what is wrong, where, and what to do.
    """
    opening, sampling, steps = Opening.of(model), sampling or Sampling(), steps or Steps()
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    asked = True if chat is None and system is not None else chat
    if (folder := require_tokenizer(opening)) is not None and asked:
        refuse_wordless(folder, opening.name, _INSTEAD)
    with opening.open(steps, find_sites=False) as bench:
        folder = bench.tokenizer.folder if bench.tokenizer is not None else None
        answers = has_template(folder) if asked is None else asked
        if answers:
            refuse_wordless(folder, opening.name, _INSTEAD)
            steps.remark("by the model's chat template" + (": --no-chat continues text as it is" if not asked else ""))
        start = time.perf_counter()
        speaker = Speaker(bench)
        loaded = time.perf_counter() - start
        if answers:
            before = [{"role": "system", "content": system}] if system is not None else []
            turns = [
                speaker.turn([*before, {"role": "user", "content": text}], f"{text}\n" if len(given) > 1 else "", stops)
                for text in given
            ]
        else:
            turns = [speaker.prompt(text, stops) for text in given]
        found = speaker.say(turns, sampling, max_new_tokens, write or (lambda _: None), chat=answers)
    return _result(opening.name, given, turns, found, sampling, loaded, chat=answers)


def _result(
    name: str,
    given: list[str],
    prompts: list[Prompt],
    found: Generated,
    sampling: Sampling,
    loaded: float,
    *,
    chat: bool,
) -> Generation:
    speed = found.tokens_per_second
    return Generation(
        model=name,
        prompts=given,
        prompt_tokens=[len(prompt.ids) for prompt in prompts],
        texts=[prompt.stream.text for prompt in prompts],
        tokens=[row.tokens for row in found.rows],
        finish=[str(row.finish) for row in found.rows],
        cache=found.cached,
        chat=chat,
        sampling=asdict(sampling),
        prefill_seconds=round(found.prefill_seconds, 4),
        decode_seconds=round(found.decode_seconds, 4),
        tokens_per_second=None if speed is None else round(speed, 2),
        load_seconds=round(loaded, 4),
    )
