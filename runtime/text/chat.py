"""Messages as the text that a model was trained on: the chat template of its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spq_graph.runtime.text.tokenizer import read_json
from spq_graph.terms.errors import DataError

# What a template takes for today: calibration on the same messages gives the same plan on every day.
_DAY = date(2025, 1, 1)


def render(messages: list[Any], folder: Path | None) -> str:
    """Messages in the words of a tokenizer's chat template, without a BOS in front, which the tokenizer adds itself.

    As transformers renders it (`apply_chat_template`): in a sandbox, with blocks trimmed.

    Args:
        messages: each with `role` and `content`.
        folder: of the tokenizer, with `chat_template.jinja`, or a template in `tokenizer_config.json`; None has none.

    Raises:
        DataError: the folder has no template, or it does not take these messages.
    """
    config = read_json(folder / "tokenizer_config.json") if folder is not None else {}
    template = _template(folder, config) if folder is not None else None
    if template is None:
        raise DataError(
            "messages need a chat template, and the tokenizer has none",
            where=str(folder or ""),
            remedy="Pass --tokenizer DIR with the one of a chat model, or write the texts under `text`.",
        )
    special = {f"{name}_token": _text_of(config.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")}
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _DAY.strftime}
    try:
        text = environment.from_string(template).render(messages=messages, add_generation_prompt=False, **special)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise DataError(
            f"the chat template does not take these messages: {error}",
            where=str(folder),
            remedy="Write the messages as the template wants them, or the texts under `text`.",
        ) from error
    return text.removeprefix(special["bos_token"])


def _template(folder: Path, config: Mapping[str, Any]) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):  # several by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _text_of(token: object) -> str:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
