"""Where every verb's output goes. Results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from spq_graph.workbench.steps import Steps

errors = Console(stderr=True)


def steps(console: Console = errors) -> Steps:
    """The steps of a new run: remarks on a console, by default standard error, and bars where that is a terminal."""

    def remark(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    if not console.is_terminal:
        return Steps(remark=remark)
    bars = _Bars(console)
    return Steps(watch=bars.watch, remark=remark, ended=bars.ended)


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
    """Print one JSON object."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=1))


def answer(data: dict[str, Any], words: Iterable[str], *, as_json: bool) -> None:
    """Print what came of a verb: one JSON object, or lines of text for people."""
    if as_json:
        print_json(data)
        return
    for line in words:
        typer.echo(line)


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
