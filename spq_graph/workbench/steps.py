"""Timed steps: quiet for a program, or with a bar on a console, or told to a function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Tick = Callable[[int, int], None]
"""Takes how much is done, and of how much."""
Watch = Callable[[str, int, int], None]
"""Takes what is being done, in words, how much of it is done, and of how much."""


def _nowhere() -> Console:
    return Console(quiet=True, force_terminal=False)


@dataclass(slots=True)
class Steps:
    """The steps of one run.

    Attributes:
        console: where bars and remarks go; by default nowhere. No bar is drawn where it is not a terminal.
        watch: is told of every step as it begins, with 0 of 0, and whenever more of it is done.
        seconds: wall time by step, in order.
    """

    console: Console = field(default_factory=_nowhere)
    watch: Watch | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, label: str | None = None) -> Iterator[Tick]:
        """Time a step and draw its bar; the yielded function takes how much is done, and of how much."""
        start, label = time.perf_counter(), label or name
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            task = bars.add_task(label, total=None)

            def tick(done: int, total: int) -> None:
                bars.update(task, completed=done, total=total)
                if self.watch is not None:
                    self.watch(label, done, total)

            if self.watch is not None:
                self.watch(label, 0, 0)
            yield tick
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
        if self.console.is_terminal:
            self.console.print(f"[green]✓[/] {label} [dim]{self.seconds[name]:.1f} s[/]")
