"""The verb that talks: `chat`."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated

import typer

from spq_graph.cli import options as o
from spq_graph.cli.terminal import errors, print_json, steps, write_text

if TYPE_CHECKING:
    from spq_graph.jobs.chat import Chat

_COMMANDS = {
    "/exit": "end, as Ctrl-D does",
    "/quit": "the same",
    "/reset": "forget what was said",
    "/system": "forget it, and tell the model this before: /system TEXT",
    "/help": "this",
}
_COMMAND = re.compile(r"(/\w*)(?:\s+(.*))?$", re.DOTALL)


def chat(
    path: o.AnyModel,
    system: o.System = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="most tokens of an answer", metavar="N")] = 512,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    seed: o.DrawSeed = None,
    tokenizer: o.Tokenizer = None,
    as_json: o.Json = False,
) -> None:
    """Talk with a model by its own chat template; where standard input is no terminal, each line of it is a turn."""
    from spq_graph.jobs.chat import chat as run
    from spq_graph.terms.errors import UsageError
    from spq_graph.workbench.opening import Opening

    sampling = o.sampling_of(temperature, top_k, top_p, seed)
    opening = Opening(path, tokenizer)
    with run(opening, system=system, sampling=sampling, max_new_tokens=max_new_tokens, steps=steps()) as talk:
        _converse(talk, shown=not as_json)
        if not talk.said.finish and not _at_terminal():
            raise UsageError(
                "nothing was said",
                where="standard input",
                remedy="give a line for each turn: echo Hello | spq-graph chat OUT",
            )
        if as_json:
            print_json(talk.said.to_dict())


def _at_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _converse(talk: Chat, *, shown: bool) -> None:
    """Answer what comes on standard input, until it ends; at a terminal a turn that cannot be answered ends nothing."""
    from spq_graph.terms.errors import SpqError
    from spq_graph.views.errors import print_error

    if _at_terminal():
        errors.print(
            "/help shows what else may be typed; Ctrl-C ends an answer, Ctrl-D the chat", style="dim", highlight=False
        )
    for line in _turns():
        command = _COMMAND.match(line)
        if command is not None:
            if not _obeyed(talk, *command.groups()):
                return
            continue
        try:
            talk.answer(line, write_text if shown else lambda _: None)
        except SpqError as error:
            if not _at_terminal():
                raise
            print_error(error, errors)


def _obeyed(talk: Chat, command: str, rest: str | None) -> bool:
    """Do what a command says; False where it is to end."""
    if command in ("/exit", "/quit"):
        return False
    if command in ("/reset", "/system"):
        talk.forget(rest or "" if command == "/system" else None)
    elif command == "/help":
        errors.print("\n".join(f"{name:<8} {words}" for name, words in _COMMANDS.items()), markup=False)
    else:
        near = " or ".join(get_close_matches(command, _COMMANDS, n=1) or _COMMANDS)
        errors.print(f"there is no {command}: {near}", markup=False, highlight=False)
    return True


def _turns() -> Iterator[str]:
    """What is typed, or piped in, line by line, but for empty ones."""
    if sys.stdin is None:
        return
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if _at_terminal():
        with suppress(ImportError):  # lines can then be edited, and called back
            import readline  # noqa: F401
    while True:
        try:
            line = input("> ") if _at_terminal() else next(sys.stdin)
        except (EOFError, StopIteration):
            return
        if line.strip():
            yield line.strip()
