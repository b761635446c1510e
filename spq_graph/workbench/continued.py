"""What the source and what was made of it say to the same beginnings: three of them, for people to read."""

from __future__ import annotations

from collections.abc import Sequence

from spq_graph.documents.plan import Plan
from spq_graph.documents.report import Sample
from spq_graph.passes.files.read import size_of
from spq_graph.runtime.generation.generate import Continuation, Limits, continue_prompts
from spq_graph.runtime.generation.sampling import Sampling
from spq_graph.runtime.proof.held import runner_on, why_absent
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.runtime.text.streaming import TextStream
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import SpqError
from spq_graph.workbench.answers import continues
from spq_graph.workbench.built import Built
from spq_graph.workbench.glance import why_not
from spq_graph.workbench.speaking import stop_ids
from spq_graph.workbench.workbench import Workbench

PROMPTS, PROMPT, NEW = 3, 24, 24
# What was seen of models from 1 to 135 million weights: tokens of a prompt that take as long as one that is decoded, by
# the source and by what was made of it.
DECODED = 20.0


def samples_of(bench: Workbench, plan: Plan, built: Built, text: Sequences) -> list[Sample]:
    """Continue beginnings from a text greedily, by the source and by what was made of it.

    It takes as long as some dozens of tokens; where it fails, this is remarked and nothing else is lost.

    Args:
        bench: the source.
        plan: what was made.
        built: its file.
        text: what the beginnings are taken from, evenly.

    Returns:
        Nothing where there is no tokenizer, where the graph only tells what comes behind a fixed number of tokens, or
        where two whole sessions take too much memory.
    """
    profile, tokenizer = plan.recipe.profile, bench.tokenizer
    elsewhere = profile.runtime != "onnxruntime" or why_absent(profile) is not None
    if tokenizer is None or bench.logits.output is None or elsewhere:
        return []
    if why_not(size_of(bench.model), bench.memory) is not None or not continues(bench):
        return []
    try:
        with bench.steps.step("samples", f"Continuing {PROMPTS} beginnings"):
            prompts = beginnings_of(text, tokenizer.prepended(bench.bos), _room(bench, text))
            return _samples(bench, tokenizer, prompts, runner_on(profile, built.path, logits=bench.logits))
    except SpqError as error:
        bench.steps.remark(f"no beginnings were continued: {error.what}")
        return []


def expected(size: int, memory: int | None, token: float) -> float:
    """Seconds that `samples_of` is expected to take.

    Args:
        size: of the source's files, in bytes.
        memory: bytes that the weights in a session may take; None for no limit.
        token: seconds that a token of a prompt takes.
    """
    return NEW * DECODED * token if why_not(size, memory) is None else 0.0


def _room(bench: Workbench, text: Sequences) -> int:
    """Tokens of a sequence that the model is known to take."""
    return bench.decoder.fixed_shape[1] or bench.known_length or text.ids.shape[1]


def beginnings_of(text: Sequences, lead: Sequence[int], room: int) -> list[list[int]]:
    """Beginnings of one length, from rows that stand evenly over a text, or from within them where there are few.

    Args:
        text: the rows.
        lead: what each of them begins with, and each beginning therefore.
        room: tokens that a model takes, of which half are left.
    """
    length = min(PROMPT, room // 2)
    rows = [row[mask == 1][len(lead) :].tolist() for row, mask in zip(text.ids, text.mask, strict=True)]
    places = [number * len(rows) / PROMPTS for number in range(PROMPTS)]
    within = len(rows) < PROMPTS
    starts = [(int(place), int(place % 1 * len(rows[int(place)])) if within else 0) for place in places]
    found = [[*lead, *rows[row][start : start + length - len(lead)]] for row, start in starts]
    return [one for one in found if len(one) == length]


def _samples(bench: Workbench, tokenizer: TextTokenizer, prompts: Sequence[Sequence[int]], own: Runner) -> list[Sample]:
    if not prompts:
        return []
    longest = bench.decoder.fixed_shape[1] or bench.source.max_length
    limits = Limits(min(NEW, len(prompts[0])), stop_ids(bench, tokenizer, chat=False), longest)
    said = [_continued(runner, prompts, limits) for runner in (bench.runner, own)]
    return [
        Sample(
            prompt=tokenizer.decode(prompt),
            fp32=_text(tokenizer, prompt, fp32),
            quantized=_text(tokenizer, prompt, quantized),
            tokens=len(fp32.tokens),
            alike=_alike(fp32.tokens, quantized.tokens),
        )
        for prompt, fp32, quantized in zip(prompts, *said, strict=True)
    ]


def _continued(runner: Runner, prompts: Sequence[Sequence[int]], limits: Limits) -> list[Continuation]:
    return continue_prompts(runner, prompts, Sampling(), limits, lambda *_: False).rows


def _text(tokenizer: TextTokenizer, prompt: Sequence[int], found: Continuation) -> str:
    stream = TextStream(tokenizer, list(prompt), ())
    for token in found.tokens:
        stream.push(token)
    stream.finish()
    return stream.text


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    different = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(different, min(len(one), len(other)))
