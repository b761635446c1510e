"""A model that is open and speaks: what it is given to continue, where it ends, and its text as that comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spq_graph.runtime.generation.generate import Generated, Limits, OnEnd, OnToken, continue_prompts
from spq_graph.runtime.generation.sampling import Sampling
from spq_graph.runtime.text.chat import has_template, to_answer
from spq_graph.runtime.text.streaming import InOrder, TextStream
from spq_graph.runtime.text.tokenizer import TextTokenizer, read_json
from spq_graph.terms.errors import DataError, UsageError
from spq_graph.workbench.answers import require_continuing, require_logits
from spq_graph.workbench.companions import companions
from spq_graph.workbench.naming import named_on
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model continues, and what comes of it.

    Attributes:
        heading: what is shown before its text.
        ids: its tokens.
        stream: the text that follows.
    """

    heading: str
    ids: list[int]
    stream: TextStream


def require_tokenizer(opening: Opening) -> Path | None:
    """The folder of a model's tokenizer, before it is opened; None of a GGUF, which has it inside.

    Raises:
        UsageError: nothing makes tokens for it.
    """
    found = opening.resolve(find_sites=False)
    if found.tokenizer is None and found.kind != "gguf":
        remedy = "pass --tokenizer DIR, the folder with tokenizer.json"
        raise UsageError("text needs a tokenizer", where=opening.name, remedy=remedy)
    return found.tokenizer


def refuse_wordless(folder: Path | None, name: str, instead: str) -> None:
    """Refuse a model that nothing says how to talk with.

    Args:
        folder: of its tokenizer.
        name: of the model, as it was given.
        instead: what is possible all the same.

    Raises:
        UsageError: there is no chat template.
    """
    if not has_template(folder):
        raise UsageError(
            "the model has no chat template, so that nothing says how to talk with it",
            where=name,
            remedy=f"{instead}, or pass --tokenizer DIR, a folder with chat_template.jinja",
        )


class Speaker:
    """A model that text can be asked of; its session opens with this.

    Args:
        bench: the model, with a tokenizer.

    Raises:
        GraphError: it gives no logits, or cannot go on behind the tokens that it insists on.
    """

    def __init__(self, bench: Workbench) -> None:
        assert bench.tokenizer is not None  # `require_tokenizer` asked for it
        self.tokenizer: TextTokenizer = bench.tokenizer
        self._bench = bench
        require_logits(bench, "text to generate", "export the model with its head")
        require_continuing(bench, "export the model with a free length, or with logits of every token")
        self._runner = bench.runner

    def prompt(self, text: str, stops: Sequence[str] = ()) -> Prompt:
        """A text to continue; an empty one is a beginning, where the model has one.

        Raises:
            UsageError: there is nothing to begin with.
        """
        tokenizer = self.tokenizer
        ids = [*tokenizer.prepended(self._bench.bos), *tokenizer.encode(text)]
        first = tokenizer.bos_id if tokenizer.bos_id is not None else self._bench.source.bos_token_id
        if not ids and first is None:
            raise UsageError("the prompt has no tokens", remedy="this model knows no beginning: give it some text")
        ids = ids or [first or 0]
        return Prompt(text, ids, TextStream(tokenizer, ids, stops))

    def turn(self, messages: list[Any], heading: str, stops: Sequence[str] = ()) -> Prompt:
        """A conversation to answer, in the words of the model's template.

        Raises:
            DataError: the template does not take these messages, or makes nothing of them.
        """
        folder = self.tokenizer.folder
        ids = self.tokenizer.encode(to_answer(messages, folder))
        led = self.tokenizer.prepended(True) if self._bench.bos else []
        ids = ids if ids[: len(led)] == led else [*led, *ids]
        if not ids:
            raise DataError(
                "the chat template makes no text of this conversation",
                where=str(folder),
                remedy="mend the template, or continue text as it is: `spq-graph generate --no-chat`",
            )
        return Prompt(heading, ids, TextStream(self.tokenizer, ids, stops))

    def say(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        max_new_tokens: int,
        write: Callable[[str], None],
        *,
        chat: bool,
    ) -> Generated:
        """Continue prompts, as one batch.

        Args:
            prompts: what to continue; their streams take what comes.
            sampling: how tokens are chosen.
            max_new_tokens: most tokens to add to each; the model's own length and stop tokens end it as well.
            write: takes headings and text as they arrive, one prompt after the other.
            chat: whether a turn ends where the tokenizer says that a text does, too.

        Raises:
            DataError: the tokenizer knows more tokens than the model.
            UsageError: a prompt fills the model's length.
            ActivationError: the logits are NaN or infinite.
        """
        ids = [prompt.ids for prompt in prompts]
        _check_vocabulary(ids, self._runner.vocabulary, self._bench.source.origin)
        limits = Limits(max_new_tokens, stop_ids(self._bench, self.tokenizer, chat=chat), self._bench.source.max_length)
        with named_on(self._bench, ids):
            return continue_prompts(self._runner, ids, sampling, limits, *_told(prompts, write))


def stop_ids(bench: Workbench, tokenizer: TextTokenizer, *, chat: bool) -> frozenset[int]:
    """Tokens that end a text, from the first file that names any; a turn ends at the tokenizer's own as well.

    Chat models are published whose generation_config.json names the end of a document alone, while their template
    ends a turn with what tokenizer_config.json calls EOS.
    """
    folder, own = companions(bench.source), tokenizer.eos_id
    beside = frozenset() if own is None else frozenset({own})
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        ids = [i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int)]
        if ids:
            return frozenset(ids) | (beside if chat else frozenset())
    return beside


def _told(prompts: Sequence[Prompt], write: Callable[[str], None]) -> tuple[OnToken, OnEnd]:
    """What hands text on as it arrives: to be called with each token, and at each end."""
    shown = InOrder(write, [prompt.heading for prompt in prompts])

    def on_token(row: int, token: int) -> bool:
        stream = prompts[row].stream
        shown.add(row, stream.push(token))
        return stream.stopped

    def on_end(row: int) -> None:
        shown.add(row, prompts[row].stream.finish())
        shown.end(row)

    return on_token, on_end


def _check_vocabulary(ids: list[list[int]], size: int | None, path: str) -> None:
    if size is not None and max(map(max, ids)) >= size:
        raise DataError(
            f"a prompt has tokens outside of the vocabulary of {size}",
            where=path,
            remedy="pass --tokenizer DIR with this model's own: the given one knows more tokens than the model",
        )
