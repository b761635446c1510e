"""What is told of a run on a terminal: a bar for each step that is under way."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from spq_graph.documents.tables import duration
from spq_graph.workbench.steps import Course


class _Whole(ProgressColumn):
    """Which step of how many this is, and how long all of them still take, as far as that is known."""

    def __init__(self, course: Course) -> None:
        super().__init__()
        self._course = course

    def render(self, task: Task) -> Text:
        """As text, empty where nothing is known."""
        place, left = self._course.place, self._course.left_with(task.time_remaining)
        if place is None or left is None:
            return Text()
        return Text(f"step {place[0]}/{place[1]}, {duration(left)} left in all", style="dim")


class Bars:
    """A bar for each step that has begun, which becomes a line when it is over.

    Args:
        console: where they are drawn.
        course: how far the run is.
    """

    def __init__(self, console: Console, course: Course) -> None:
        self._console, self._course = console, course
        self._open: dict[str, tuple[Progress, TaskID]] = {}

    def watch(self, label: str, done: int, total: int) -> None:
        """Begin a bar, or move it."""
        if label in self._open:
            progress, task = self._open[label]
            progress.update(task, completed=done, total=total)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            _Whole(self._course),
        )
        progress = Progress(*columns, console=self._console, transient=True)
        self._open[label] = progress, progress.add_task(label, total=None)
        progress.start()

    def phase(self, label: str, text: str) -> None:
        """Say what of a step begins."""
        if label in self._open:
            progress, task = self._open[label]
            progress.update(task, description=f"{label}: {text}")

    def ahead(self, by_step: Mapping[str, float]) -> None:
        """Say what is expected; the single steps stand beside each bar."""
        self._console.print(f"expected: {duration(sum(by_step.values()))} in all", style="dim", highlight=False)

    def ended(self, label: str, seconds: float | None) -> None:
        """Take a bar away, and leave a line of what it took where it came to its end."""
        progress, _ = self._open.pop(label)
        progress.stop()
        if seconds is not None:
            self._console.print(f"[green]✓[/] {escape(label)} [dim]{seconds:.1f} s[/]")
