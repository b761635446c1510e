"""A conversation with a model, turn by turn."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spq_graph.documents.interrupts import awaited
from spq_graph.documents.results import Conversation
from spq_graph.runtime.generation.sampling import Sampling
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.speaking import Speaker, refuse_wordless, require_tokenizer
from spq_graph.workbench.steps import Steps

MAX_NEW_TOKENS = 512
_INSTEAD = "continue text with `spq-graph generate`"


class Chat:
    """A conversation that goes on as long as its model is open. Every turn runs all of it again, answers included.

    Args:
        speaker: the model.
        name: of the model, as it was given.
        system: what the model is told before a user speaks.
        sampling: how tokens are chosen.
        max_new_tokens: most tokens of an answer.
    """

    def __init__(
        self, speaker: Speaker, name: str, system: str | None, sampling: Sampling, max_new_tokens: int
    ) -> None:
        self._speaker, self._name, self._sampling, self._most = speaker, name, sampling, max_new_tokens
        self._messages: list[dict[str, str]] = []
        self._finish: list[str] = []
        self._tokens: list[int] = []
        self.forget(system)

    def forget(self, system: str | None = None) -> None:
        """Begin again; with a system prompt that is not None, under that one."""
        kept = [one for one in self._messages if one["role"] == "system"]
        self._messages = kept if system is None else [{"role": "system", "content": system}] if system else []
        self._finish, self._tokens = [], []

    def answer(self, text: str, write: Callable[[str], None] = lambda _: None) -> str:
        """Say something, and hear what the model says to it, which Ctrl-C ends: what came until then stays said.

        Args:
            text: what the user says.
            write: takes the answer as it arrives.

        Returns:
            The answer.

        Raises:
            DataError: the chat template does not take the conversation.
            UsageError: the conversation fills the model's length. Either way this turn is not part of it.
        """
        asked = [*self._messages, {"role": "user", "content": text}]
        prompt = self._speaker.turn(asked, "")
        finish, tokens = "interrupted", 0
        with awaited(signal.SIGINT):
            (row,) = self._speaker.say([prompt], self._sampling, self._most, write, chat=True).rows
            finish, tokens = str(row.finish), len(row.tokens)
        if finish == "interrupted":
            write("\n")
            tokens = len(self._speaker.tokenizer.encode(prompt.stream.text))
        self._messages = [*asked, {"role": "assistant", "content": prompt.stream.text}]
        self._finish.append(finish)
        self._tokens.append(tokens)
        return prompt.stream.text

    @property
    def said(self) -> Conversation:
        """All of it so far."""
        return Conversation(self._name, self._messages, self._finish, self._tokens)


@contextmanager
def chat(
    model: Openable,
    *,
    system: str | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    steps: Steps | None = None,
) -> Iterator[Chat]:
    """Open a model to talk with it, by its own chat template.

    Args:
        model: an .onnx file, an OUT folder, a Hugging Face folder, or a GGUF.
        system: what the model is told before a user speaks.
        sampling: how tokens are chosen; None for always the likeliest.
        max_new_tokens: most tokens of an answer; the model's own length and stop tokens end it as well.
        steps: times and shows what is done.

    Raises:
        SpqError: what is wrong, where, and what to do.
    """
    opening = Opening.of(model)
    if (folder := require_tokenizer(opening)) is not None:
        refuse_wordless(folder, opening.name, _INSTEAD)
    with opening.open(steps, find_sites=False) as bench:
        refuse_wordless(bench.tokenizer.folder if bench.tokenizer is not None else None, opening.name, _INSTEAD)
        yield Chat(Speaker(bench), opening.name, system, sampling or Sampling(), max_new_tokens)
