"""A conversation that a model has with itself: what its chat template writes around each turn, put between them.

Magpie (arXiv 2406.08464) draws instructions alike: behind the words that open a user's turn, a chat model writes what
users say.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from spq_graph.runtime.text.chat import has_template, render
from spq_graph.runtime.text.sequences import Ids
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import DataError

# What is said, to find what stands around it: no template makes anything of such words, or has them itself.
_SAID = ("qvone", "qvtwo", "qvthree")


@dataclass(frozen=True, slots=True)
class Turns:
    """What stands around turns, as ids.

    Attributes:
        opening: before what a user says first, with what the tokenizer prepends and the system's words.
        to_answer: between what a user says and the answer; at least one.
        to_ask: between the answer and what the user says next; at least one.
        stops: tokens that end a turn, besides the first one of what stands behind it.
    """

    opening: tuple[int, ...]
    to_answer: tuple[int, ...]
    to_ask: tuple[int, ...]
    stops: frozenset[int]

    @classmethod
    def of(cls, tokenizer: TextTokenizer, *, bos: bool, stops: frozenset[int]) -> Turns | None:
        """What a tokenizer's template writes around turns, as `load_sequences` reads the same conversation.

        Args:
            tokenizer: of the model, whose folder may have a template.
            bos: prepend BOS even where the tokenizer does not.
            stops: as the attribute.

        Returns:
            None where there is no template, where it does not take a plain conversation of a user and an assistant, or
            where it does not write one as it is, with something around every turn.
        """
        if not has_template(tokenizer.folder):
            return None
        prefix = tokenizer.prepended(bos)
        around = _around(tokenizer.folder, led=tokenizer.bos_id in prefix)
        ids = [tokenizer.encode(text) for text in around or ()]
        if not all(ids) or not ids:
            return None
        opening, to_answer, to_ask = map(tuple, ids)
        return cls((*prefix, *opening), to_answer, to_ask, stops)


def _around(folder: Path | None, *, led: bool) -> list[str] | None:
    """The texts before each of three turns; None where a template has no such."""
    roles = ("user", "assistant", "user")
    messages = [{"role": role, "content": said} for role, said in zip(roles, _SAID, strict=True)]
    try:
        rest = render(messages, folder, led=led)
    except DataError:
        return None
    found = []
    for said in _SAID:
        before, is_there, rest = rest.partition(said)
        if not is_there or said in rest:
            return None
        found.append(before)
    return found


class Conversation:
    """Rows of a batch that is drawn token by token, each of them a conversation.

    Args:
        turns: what stands around them.
        rows: how many.
        longest: tokens of a user's turn that does not end by itself.
    """

    def __init__(self, turns: Turns, rows: int, longest: int) -> None:
        self._rows = [_row(turns, longest) for _ in range(rows)]
        for row in self._rows:
            next(row)

    def __call__(self, drawn: Ids) -> Ids:
        """The tokens that stand where these were drawn, int64 [rows]: behind the first one, position by position."""
        return np.array([row.send(int(token)) for row, token in zip(self._rows, drawn, strict=True)], dtype=np.int64)


def _row(turns: Turns, longest: int) -> Generator[int, int, None]:
    """Takes what was drawn, and yields what stands there; its first value is none."""
    drawn = yield -1
    for token in turns.opening[1:]:
        drawn = yield token
    for behind, most in cycle(((turns.to_answer, longest), (turns.to_ask, None))):
        said = 0
        while drawn != behind[0] and drawn not in turns.stops and said != most:
            said += 1
            drawn = yield drawn
        for token in behind:
            drawn = yield token
