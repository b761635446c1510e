"""Where every verb's output goes. Results on standard output, progress and errors on standard error."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from spq_graph.documents.json_text import json_text
from spq_graph.documents.tables import printable
from spq_graph.workbench.steps import Steps

errors = Console(stderr=True)
verbose: ContextVar[bool] = ContextVar("verbose", default=False)
"""Whether to show what libraries print while a model is loaded and exported."""

Verbose = Annotated[
    bool, typer.Option("--verbose", help="show what torch and transformers print while a model is loaded and exported")
]


def with_verbose(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb that takes --verbose as well, as every verb does; the verb itself does not hear of it."""

    @functools.wraps(verb)
    def run(*args: Any, said: bool = False, **options: Any) -> None:
        if said:
            verbose.set(True)
        verb(*args, **options)

    signature = inspect.signature(verb, eval_str=True)
    extra = inspect.Parameter("said", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Verbose)
    run.__dict__["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), extra])
    run.__annotations__ = {name: one.annotation for name, one in signature.parameters.items()} | {"said": Verbose}
    return run


def steps(console: Console = errors) -> Steps:
    """The steps of a new run: remarks on a console, by default standard error, and bars where that is a terminal."""

    def remark(text: str) -> None:
        console.print(printable(text), markup=False, highlight=False)

    def heard(text: str) -> None:
        if verbose.get():
            lines = "\n".join(printable(line) for line in text.splitlines())
            console.print(lines, markup=False, highlight=False, soft_wrap=True)

    if not console.is_terminal:
        return Steps(remark=remark, heard=heard)
    bars = _Bars(console)
    return Steps(watch=bars.watch, remark=remark, ended=bars.ended, heard=heard)


class _Bars:
    """A bar for each step that has begun, which becomes a line when it is over."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open: dict[str, tuple[Progress, TaskID]] = {}

    def watch(self, label: str, done: int, total: int) -> None:
        """Begin a bar, or move it."""
        if label in self._open:
            progress, task = self._open[label]
            progress.update(task, completed=done, total=total)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        progress = Progress(*columns, console=self._console, transient=True)
        self._open[label] = progress, progress.add_task(label, total=None)
        progress.start()

    def ended(self, label: str, seconds: float | None) -> None:
        """Take a bar away, and leave a line of what it took where it came to its end."""
        progress, _ = self._open.pop(label)
        progress.stop()
        if seconds is not None:
            self._console.print(f"[green]✓[/] {label} [dim]{seconds:.1f} s[/]")


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
        errors.print(f"{', '.join(names)}: not used {where}", markup=False, highlight=False, soft_wrap=True)


def write_text(text: str) -> None:
    """Print a piece of a model's text at once; on a terminal without the control characters that could act there."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()
