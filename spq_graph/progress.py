"""Timed steps with a bar on standard error, quiet where that is not a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Tick = Callable[[int, int], None]


@dataclass(slots=True)
class Steps:
    """The steps of one run.

    Attributes:
        console: where bars go; nothing is drawn where it is not a terminal.
        seconds: wall time by step, in order.
    """

    console: Console = field(default_factory=lambda: Console(stderr=True))
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, label: str | None = None) -> Iterator[Tick]:
        """Time a step and draw its bar; the yielded function takes how much is done, and of how much."""
        start = time.perf_counter()
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            task = bars.add_task(label or name, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
        if self.console.is_terminal:
            self.console.print(f"[green]✓[/] {label or name} [dim]{self.seconds[name]:.1f} s[/]")
