"""Which of several texts a model finds likelier, or whether it finishes a text as written.

A task is a file with one JSON object a line, in one of three forms:

- `{"query", "choices", "gold"}`: several continuations of one context,
- `{"context_options", "continuation", "gold"}`: one continuation of several contexts,
- `{"context", "continuation"}`: one continuation, which greedy decoding has to meet token by token.

Context and continuation are joined by one space. A query that asks a `Question:` and leaves it at that gets a line
`Answer:`, the customary prompt of such sets. Nothing else is added, so figures compare between models scored here,
and with published ones only where those used the same prompts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from spq_graph.documents.parsed import parse_json
from spq_graph.runtime.measures.likelihood import Logits, Request, likelihoods
from spq_graph.runtime.text.documents import read_text
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import ActivationError, DataError, UsageError

_QUESTION = re.compile(r"^Question:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Example:
    """One question: (context, continuation) pairs and which of them is right."""

    options: tuple[tuple[str, str], ...]
    gold: int


@dataclass(frozen=True, slots=True)
class Task:
    """A named set of examples, all of one kind: `greedy` ones have a single option to be met, others a choice."""

    name: str
    examples: tuple[Example, ...]
    greedy: bool


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What came of a task.

    Attributes:
        accuracy: share of examples whose right option has the highest summed log-likelihood, not normalized by its
            length; of a greedy task, share of continuations that greedy decoding meets in full.
        n: number of examples.
        accuracy_normalized: as `accuracy`, by log-likelihood per UTF-8 byte of the continuation, which does not favour
            short answers; None for a greedy task.
        accuracy_stderr, accuracy_normalized_stderr: standard errors of the two, as `share_and_error` has them.
    """

    accuracy: float
    n: int
    accuracy_normalized: float | None = None
    accuracy_stderr: float | None = None
    accuracy_normalized_stderr: float | None = None


def load_task(path: Path) -> Task:
    """Read a task; its name is that of the file.

    Raises:
        DataError: unreadable, no text, empty, or a row of another form, named by its line.
    """
    lines = read_text(path).split("\n")
    examples: list[Example] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            examples.append(_example(line, where=f"{path}:{number}"))
            if (len(examples[-1].options) == 1) != (len(examples[0].options) == 1):
                raise DataError(
                    "a file holds either choices or plain continuations",
                    where=f"{path}:{number}",
                    remedy="Put the two into files of their own.",
                )
    if not examples:
        raise DataError("no examples", where=str(path), remedy="One JSON object a line.")
    return Task(Path(path.name.removesuffix(".gz")).stem, tuple(examples), greedy=len(examples[0].options) == 1)


def score_task(
    task: Task,
    tokenizer: TextTokenizer,
    logits: Logits,
    *,
    max_length: int,
    limit: int | None = None,
    batch: int = 16,
    bos: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TaskResult:
    """Score a model on a task.

    A text too long for the model loses the beginning of its context, never what the tokenizer prepends; a continuation
    too long by itself is scored by its end. Options that differ in their last token alone are run once.

    Args:
        task: what to ask.
        tokenizer: the model's.
        logits: runs the model on rows padded on the right.
        max_length: most tokens in a row.
        limit: score only so many examples, the first ones.
        batch: most rows at once; fewer where the logits would exceed 256 MiB.
        bos: prepend BOS even where the tokenizer does not.
        progress: called with rows done and rows in all after each batch.

    Raises:
        ActivationError: a log-likelihood is NaN.
        DataError: the tokenizer makes nothing of a continuation.
        UsageError: `limit` or `max_length` leaves nothing to score, or BOS is asked for and not known.
    """
    examples = task.examples[:limit]
    prefix = tokenizer.prepended(bos)
    if not examples or (limit is not None and limit < 1):
        raise UsageError(f"a limit of {limit} leaves no example", where=task.name, remedy="--limit 1 or more.")
    if max_length <= len(prefix):
        raise UsageError(f"{max_length} tokens have no room for text", remedy=f"{len(prefix) + 1} or more.")
    requests = [_request(tokenizer, prefix, *option, max_length) for example in examples for option in example.options]
    scores, greedy = likelihoods(requests, logits, batch=batch, vocab_size=tokenizer.vocab_size, progress=progress)
    if np.isnan(scores).any():
        raise ActivationError("the logits hold NaN", where=task.name, remedy="Check the model with spq-graph eval.")
    if task.greedy:
        share, error = share_and_error(greedy)
        return TaskResult(share, len(examples), accuracy_stderr=error)
    sizes = np.array([len(text.strip().encode()) for example in examples for _, text in example.options])
    gold = np.array([example.gold for example in examples])
    ends = np.cumsum([len(example.options) for example in examples])[:-1]
    (plain, error), (normalized, its_error) = (
        share_and_error(np.array([scored.argmax() for scored in np.split(values, ends)]) == gold)
        for values in (scores, scores / sizes)
    )
    return TaskResult(plain, len(examples), normalized, error, its_error)


def share_and_error(right: npt.NDArray[np.bool_]) -> tuple[float, float | None]:
    """The share p of n examples that were right, and its standard error sqrt(p (1 - p) / (n - 1)).

    That is the sample's standard deviation over sqrt(n), as lm-evaluation-harness has it; None of one example.
    """
    share, n = float(right.mean()), len(right)
    return share, math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else None


def _example(line: str, *, where: str) -> Example:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", where=where, remedy="One JSON object a line.") from error
    match row:
        case {"query": str(query), "choices": [_, _, *_] as choices, "gold": int(gold)}:
            options = [(_ask(query), choice) for choice in choices]
        case {"context_options": [_, _, *_] as contexts, "continuation": str(text), "gold": int(gold)}:
            options = [(context, text) for context in contexts]
        case {"context": str(context), "continuation": str(text)}:
            options, gold = [(context, text)], 0
        case _:
            raise DataError(
                f"a row of unknown form: {', '.join(row) if isinstance(row, dict) else type(row).__name__}",
                where=where,
                remedy="query, choices, gold; or context_options, continuation, gold; or context, continuation.",
            )
    if not all(isinstance(text, str) and text.strip() for option in options for text in option):
        raise DataError(
            "a context or continuation is empty or not a string", where=where, remedy="Write text into each of them."
        )
    if not 0 <= gold < len(options):
        raise DataError(
            f"gold is {gold}, there are {len(options)} options",
            where=where,
            remedy=f"It counts from 0 to {len(options) - 1}.",
        )
    return Example(tuple(options), gold)


def _ask(query: str) -> str:
    query = query.rstrip()
    return f"{query}\nAnswer:" if _QUESTION.search(query) and not query.endswith(":") else query


def _request(
    tokenizer: TextTokenizer, prefix: Sequence[int], context: str, continuation: str, max_length: int
) -> Request:
    """Tokens of the whole text, split where those of its context end.

    Encoded as one, since a tokenizer may join the two: then the joint token belongs to the continuation.
    """
    context = context.rstrip()
    whole = tokenizer.encode(f"{context} {continuation.strip()}")
    shared = 0
    for ours, theirs in zip(whole[:-1], tokenizer.encode(context), strict=False):
        if ours != theirs:
            break
        shared += 1
    # The last token is only predicted, so it takes no place in the row.
    body = whole[-(max_length - len(prefix) + 1) :]
    row = [*prefix, *body]
    targets = row[max(len(row) - (len(whole) - shared), len(prefix), 1) :]
    if not targets:
        raise DataError(
            "a continuation without tokens", where=repr(continuation), remedy="Pass the model's own tokenizer."
        )
    return Request(tuple(row[:-1]), np.array(targets, dtype=np.int64))
