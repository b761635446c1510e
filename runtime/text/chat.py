"""Messages as the text that a model was trained on: the chat template of its tokenizer, as transformers applies it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spq_graph.runtime.text.tokenizer import read_json
from spq_graph.terms.errors import DataError

# What a template takes for today: calibration on the same messages gives the same plan on every day.
_DAY = date(2025, 1, 1)
_MOST = 1_000_000  # steps of loops, and characters of a product


def has_template(folder: Path | None) -> bool:
    """Whether a tokenizer's folder says how a conversation is written.

    Raises:
        DataError, SourceError: a file that may say so cannot be read.
    """
    return folder is not None and _template(folder, read_json(folder / "tokenizer_config.json")) is not None


def render(messages: list[Any], folder: Path | None, *, led: bool = False) -> str:
    """Messages as data to calibrate or judge on.

    Args:
        messages: each with `role` and `content`.
        folder: of the tokenizer, with `chat_template.jinja`, or a template in `tokenizer_config.json`; None has none.
        led: leave out a BOS that the text begins with, because whoever makes tokens of it puts one there. Not every
            tokenizer does: SmolLM2's BOS is the token that each of its turns begins with.

    Raises:
        DataError: the folder has no template, or it does not take these messages.
    """
    text, bos = _rendered(messages, folder, answer=False, day=_DAY)
    return text.removeprefix(bos) if led else text


def to_answer(messages: list[Any], folder: Path | None) -> str:
    """Messages as a model is asked to answer them today: up to where its turn begins, BOS included where it has one.

    Its ids are those of the text alone: what a tokenizer prepends to a text is the template's to say.

    Args:
        messages: as of `render`, the last one of a user.
        folder: as of `render`.

    Raises:
        DataError: as `render`.
    """
    return _rendered(messages, folder, answer=True, day=date.today())[0]


def _rendered(messages: list[Any], folder: Path | None, *, answer: bool, day: date) -> tuple[str, str]:
    """Text, and the BOS that it may begin with: as `apply_chat_template` makes it, in a sandbox, blocks trimmed."""
    config = read_json(folder / "tokenizer_config.json") if folder is not None else {}
    template = _template(folder, config) if folder is not None else None
    if template is None:
        raise DataError(
            "messages need a chat template, and the tokenizer has none",
            where=str(folder or ""),
            remedy="Pass --tokenizer DIR with the one of a chat model, or write the texts under `text`.",
        )
    special = {f"{name}_token": _text_of(config.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")}
    # None, as transformers gives them: a template may ask whether they are, and not whether they are there.
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": answer}
    try:
        text = _compiled(template).render(**given, **special, range=_ranges(), strftime_now=day.strftime)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise DataError(
            f"the chat template does not take these messages: {error}",
            where=str(folder),
            remedy="Write the messages as the template wants them, or the texts under `text`.",
        ) from error
    return text, special["bos_token"]


@lru_cache(maxsize=4)
def _compiled(template: str) -> Template:
    """A template, ready to be rendered: compiling takes much longer than a conversation does."""
    environment = _Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json
    return environment.from_string(template)


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise DataError(
                f"the chat template cannot be read: {error}", where=str(file), remedy="Fetch the file again."
            ) from error
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _text_of(token: object) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


class _Generation(Extension):
    """The block that says which words are the model's own, which trainers ask for: here it is what stands in it."""

    tags: set[str] = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without the escapes for HTML that jinja's own has, and with what transformers lets a template say."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Bounded(ImmutableSandboxedEnvironment):
    """A sandbox in which no single product takes all memory, and no power all time."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """As it is, of numbers and sizes that a text may have.

        Raises:
            OverflowError: the result would be larger.
        """
        numbers = [side for side in (left, right) if isinstance(side, int | float)]
        if operator == "**":
            large = len(numbers) < 2 or not (abs(left) < _MOST and abs(right) < 64)
        else:
            large = any(
                len(side) * abs(n) > _MOST for side in (left, right) if hasattr(side, "__len__") for n in numbers
            )
        if large:
            raise OverflowError(f"{operator} of what is too large")
        return super().call_binop(context, operator, left, right)


def _ranges() -> Callable[..., range]:
    """`range` for one text, all of whose steps are counted together."""
    left = _MOST

    def counted(*args: int) -> range:
        nonlocal left
        made = range(*args)
        left -= len(made)
        if left < 0:
            raise OverflowError(f"loops of more than {_MOST:,} steps")
        return made

    return counted


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
