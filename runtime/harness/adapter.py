"""A decoder as lm-evaluation-harness wants a model: likelihoods of texts, and text that goes on.

Its own `onnxruntime` model reads what onnxruntime-genai's builder writes: one row at a time, of a length that
genai_config.json names, without our kernels, through transformers' tokenizers, and it generates nothing. Here the
session is the one of every other figure, so that an accuracy is of what was measured and of what is deployed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from spq_graph.runtime.generation.generate import Limits, continue_prompts
from spq_graph.runtime.generation.sampling import Sampling
from spq_graph.runtime.measures.likelihood import Request, likelihoods
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.chat import render, to_answer
from spq_graph.runtime.text.streaming import TextStream
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import ActivationError, DataError, UsageError

_BATCH = 8  # prompts that are continued together
Tick = Callable[[int, int], None]
"""Takes how much is done, and of how much."""


class OnnxLM(TemplateLM):  # type: ignore[misc]
    """A session as a model of lm-evaluation-harness.

    Texts begin with what the tokenizer prepends. One too long loses its beginning, as with the harness's own models.

    Args:
        runner: the session; its logits are of every token.
        tokenizer: the model's.
        max_length: most tokens in a row.
        bos: prepend BOS even where the tokenizer does not.
        stop_ids: tokens that end generated text, besides what a task names.
        tick: is told how many rows or prompts are done, and of how many.

    Attributes:
        cut: how many texts were too long.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: TextTokenizer,
        *,
        max_length: int,
        bos: bool = False,
        stop_ids: frozenset[int] = frozenset(),
        tick: Tick = lambda done, total: None,
    ) -> None:
        super().__init__()
        self.cut = 0
        self._runner, self._text, self._tick = runner, tokenizer, tick
        self._prefix = tokenizer.prepended(bos)
        self._max_length, self._stop_ids = max_length, stop_ids
        self._bos = tokenizer.token_text(tokenizer.bos_id) if tokenizer.bos_id is not None else None

    @property
    def eot_token_id(self) -> int:
        """What stands before a text that has nothing before it, where there is no BOS.

        Raises:
            UsageError: the tokenizer names neither.
        """
        if self._text.eos_id is None:
            raise UsageError(
                "the task scores text that nothing stands before, and the tokenizer names neither BOS nor EOS",
                where=str(self._text.folder or ""),
                remedy="write bos_token or eos_token into its tokenizer_config.json",
            )
        return self._text.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: BOS, or EOS where there is none."""
        return self._text.bos_id if self._text.bos_id is not None else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        """What the harness names its caches by; none is used."""
        return str(self._text.folder or "")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the model is asked to answer them, or to go on with the last one, which is its own then.

        Raises:
            DataError: as `render`.
        """
        if add_generation_prompt:
            return to_answer(chat_history, self._text.folder)
        begun = chat_history[-1]["content"].strip()
        text = render(chat_history, self._text.folder)
        return text[: text.rindex(begun) + len(begun)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text, with what goes before it unless it is there, or not asked for."""
        ids = self._text.encode(string)
        led = add_special_tokens is None and self._bos is not None and string.startswith(self._bos)
        return ids if led or add_special_tokens is False else [*self._prefix, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each request's last ids behind its first, and whether greedy decoding gives them."""
        rows = [self._row(before, after) for _, before, after in requests]
        size = self._runner.vocabulary or self._text.vocab_size
        _check_vocabulary(rows, self._runner.vocabulary, str(self._text.folder or ""))
        scores, greedy = likelihoods(rows, self._runner.logits, vocab_size=size, progress=self._tick)
        if np.isnan(scores).any():
            raise ActivationError(
                "the logits hold NaN", where=str(self._runner.path), remedy="Check the model with spq-graph eval."
            )
        return list(zip(scores.tolist(), greedy.tolist(), strict=True))

    def _row(self, before: list[int], after: list[int]) -> Request:
        # The last token is only predicted, so it takes no place in the row.
        row = [*before, *after][-(self._max_length + 1) :]
        self.cut += len(row) < len(before) + len(after)
        return Request(tuple(row[:-1] or row), np.array(row[max(len(row) - len(after), 1) :], dtype=np.int64))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text as a whole, in windows that predict every token once."""
        windows: list[tuple[Any, list[int], list[int]]] = []
        sizes = []
        for request in requests:
            (text,) = request.args
            ids = self.tok_encode(text, add_special_tokens=False)
            parts = get_rolling_token_windows(ids, self.prefix_token_id, self._max_length, context_len=1)
            before = len(windows)
            windows += [(None, *make_disjoint_window(part)) for part in parts]
            sizes.append(len(windows) - before)
        scores = [score for score, _ in self._loglikelihood_tokens(windows)]
        ends = np.cumsum(sizes).tolist()
        return [float(sum(scores[end - size : end])) for size, end in zip(sizes, ends, strict=True)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Text that goes on behind each context, up to where its task has it end.

        Raises:
            UsageError: a task wants as many new tokens as the model takes in all.
        """
        texts = [""] * len(requests)
        done = 0
        for settings, group in _by_settings(requests):
            wanted = normalize_gen_kwargs(dict(settings))
            rows = [(index, self._prompt(requests[index].args[0], wanted["max_gen_toks"])) for index in group]
            rows.sort(key=lambda row: -len(row[1]))  # too little memory shows at once
            for start in range(0, len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                for (index, _), text in zip(batch, self._continued([ids for _, ids in batch], wanted), strict=True):
                    texts[index] = text
                done += len(batch)
                self._tick(done, len(requests))
        return texts

    def _prompt(self, context: str, new_tokens: int) -> list[int]:
        room = self._max_length - new_tokens
        if room < 1:
            raise UsageError(
                f"the task wants up to {new_tokens} new tokens, and the model takes {self._max_length} in all",
                remedy=f"--window {new_tokens + 512}, where the model takes so many, or leave the task out",
            )
        ids = self.tok_encode(context) or [self.prefix_token_id]
        self.cut += len(ids) > room
        return ids[-room:]

    def _continued(self, prompts: list[list[int]], wanted: Any) -> list[str]:
        streams = [TextStream(self._text, ids, wanted["until"]) for ids in prompts]

        def on_token(row: int, token: int) -> bool:
            streams[row].push(token)
            return streams[row].stopped

        sampling = Sampling(wanted.get("temperature") or 0.0, wanted.get("top_k"), wanted.get("top_p"))
        limits = Limits(wanted["max_gen_toks"], self._stop_ids, self._max_length)
        found = continue_prompts(self._runner, prompts, sampling, limits, on_token)
        # Decoded by itself, as the harness's own models do: what a tokenizer strips of a text's beginning is stripped.
        return [postprocess_generated_text(self._text.decode(row.tokens), wanted["until"], None) for row in found.rows]


def _by_settings(requests: Sequence[Any]) -> Iterable[tuple[dict[str, Any], list[int]]]:
    """Places of the requests that are continued alike, by how."""
    keys = [repr(sorted(request.args[1].items())) for request in requests]
    places = sorted(range(len(requests)), key=keys.__getitem__)
    groups = (list(group) for _, group in groupby(places, key=keys.__getitem__))
    return [(requests[group[0]].args[1], group) for group in groups]


def _check_vocabulary(rows: Iterable[Request], size: int | None, where: str) -> None:
    most = max((max(*row.inputs, int(row.targets.max(initial=0)), 0) for row in rows), default=0)
    if size is not None and most >= size:
        raise DataError(
            f"the tokenizer makes token {most}, outside of the model's vocabulary of {size}",
            where=where,
            remedy="pass --tokenizer DIR with this model's own",
        )
