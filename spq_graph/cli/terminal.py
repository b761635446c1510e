"""Where every verb's output goes. Results on standard output, progress and errors on standard error."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from spq_graph.cli.bars import Bars
from spq_graph.cli.lines import Lines
from spq_graph.cli.log_file import LogFile
from spq_graph.documents.json_text import json_text
from spq_graph.documents.tables import printable
from spq_graph.terms.errors import SpqError
from spq_graph.workbench.steps import Course, Steps

errors = Console(stderr=True)


@dataclass(slots=True)
class Telling:
    """How much is told of a run beside its result.

    Attributes:
        verbose: also what libraries print while a model is loaded and exported.
        quiet: no steps; remarks and errors remain.
        log: where all of it is told as well; None for nowhere.
    """

    verbose: bool = False
    quiet: bool = False
    log: LogFile | None = None


telling: ContextVar[Telling] = ContextVar("telling", default=Telling())  # noqa: B039 - `begin` sets one for each run

Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="show what torch and transformers print while a model is loaded and exported"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="tell nothing of steps; remarks and errors remain")]
Log = Annotated[
    Path | None,
    typer.Option("--log-file", help="add all that is told to this file, with the time of day", metavar="FILE"),
]


def begin(*, verbose: bool, quiet: bool, log: Path | None) -> None:
    """Begin a run of the command line: what is told of it."""
    telling.set(Telling(verbose, quiet, LogFile(log) if log is not None else None))


def log_error(error: SpqError) -> None:
    """Tell the log how a run ended."""
    if (log := telling.get().log) is not None:
        where, remedy = (
            f"\n  {name}: {text}" if text else "" for name, text in (("at", error.where), ("try", error.remedy))
        )
        log.write(f"error: {error.what}{where}{remedy}")


def with_telling(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that takes --verbose, --quiet and --log-file as well, as every verb does; it does not hear of them."""

    @functools.wraps(verb)
    def run(*args: Any, said: bool = False, quiet: bool = False, log_file: Path | None = None, **options: Any) -> None:
        found = telling.get()
        found.verbose, found.quiet = found.verbose or said, found.quiet or quiet
        if log_file is not None:
            found.log = LogFile(log_file)
        verb(*args, **options)

    signature = inspect.signature(verb, eval_str=True)
    added = {"said": (False, Verbose), "quiet": (False, Quiet), "log_file": (None, Log)}
    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (default, annotation) in added.items()
    ]
    run.__dict__["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *extra])
    run.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()} | {
        name: annotation for name, (_, annotation) in added.items()
    }
    return run


def steps(console: Console = errors) -> Steps:
    """The steps of a new run, told on a console, by default standard error: bars on a terminal, and lines elsewhere.

    What is told goes to the log of the run as well, if it has one.
    """
    how, course = telling.get(), Course()
    log = how.log.write if how.log is not None else None

    def show(text: str) -> None:
        lines = "\n".join(printable(line) for line in text.splitlines())
        console.print(lines, markup=False, highlight=False, soft_wrap=True)

    def remark(text: str) -> None:
        show(text)
        if log is not None:
            log(text)

    def heard(text: str) -> None:
        if how.verbose:
            show(text)
        if log is not None:
            log(text)

    plain = not how.quiet and not console.is_terminal
    shown: list[Lines | Bars] = [Bars(console, course)] if not how.quiet and console.is_terminal else []
    if writers := [*([show] if plain else []), *([log] if log is not None else [])]:

        def write(text: str) -> None:
            for one in writers:
                one(text)

        shown.append(Lines(write, course))
    return Steps(
        watch=_each([one.watch for one in shown]),
        remark=remark,
        ended=_each([one.ended for one in shown]),
        heard=heard,
        phase=_each([one.phase for one in shown]),
        ahead=_each([one.ahead for one in shown]) if shown else None,
        course=course,
    )


def _each(functions: Iterable[Callable[..., None]]) -> Callable[..., None]:
    """A function that calls all of them."""

    def call(*arguments: Any) -> None:
        for function in functions:
            function(*arguments)

    return call


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object, in which what could act on a terminal is spelled out as JSON spells it."""
    typer.echo(_ACTING.sub(_spelled, json_text(data, "--json")))


# Control characters beyond those that JSON spells itself, what changes the direction of text, and half of a pair.
_ACTING = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def _spelled(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def answer(data: dict[str, Any], words: Iterable[str], *, as_json: bool) -> None:
    """Print what came of a verb: one JSON object, or lines of text for people."""
    if as_json:
        print_json(data)
        return
    for line in words:
        typer.echo(printable(line))


def unused(where: str, **given: object) -> None:
    """Say on standard error of options that were given that they change nothing here; by default none of them was.

    Args:
        where: when they do not, as the end of a sentence.
        given: what was typed, by the option's name.
    """
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value not in (None, False, [])]
    if names:
        said = f"{', '.join(names)}: not used {where}"
        errors.print(said, markup=False, highlight=False, soft_wrap=True)
        if (log := telling.get().log) is not None:
            log.write(said)


def write_text(text: str) -> None:
    """Print a piece of a model's text at once; on a terminal without the control characters that could act there."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()
