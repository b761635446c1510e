"""What is told of a run where no bars can be drawn: a line for every step, and none silent for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from spq_graph.documents.tables import duration
from spq_graph.workbench.steps import Course

# A step that is over sooner has one line; one that is not is announced, and then told of again and again.
SOON = 1.0
EVERY = 20.0


@dataclass(slots=True)
class _Open:
    """A step under way: when it began, and how far it is."""

    begun: float
    due: float
    done: int = 0
    total: int = 0
    phase: str = ""


class Lines:
    """Lines about the steps of one run.

    Args:
        write: takes a line; from any thread.
        course: how far the run is.
        soon: seconds after which a step is announced.
        every: seconds after which it is told of again.
    """

    def __init__(self, write: Callable[[str], None], course: Course, soon: float = SOON, every: float = EVERY) -> None:
        self._write, self._course, self._soon, self._every = write, course, soon, every
        self._open: dict[str, _Open] = {}
        self._changed = threading.Condition()
        self._teller: threading.Thread | None = None
        self._start = time.perf_counter()

    def watch(self, label: str, done: int, total: int) -> None:
        """Note how far a step is; it begins with the first call."""
        with self._changed:
            if (step := self._open.get(label)) is None:
                now = time.perf_counter()
                self._open[label] = _Open(now, now + self._soon)
                if self._teller is None:
                    self._teller = threading.Thread(target=self._tell, name="spq-graph lines", daemon=True)
                    self._teller.start()
            else:
                step.done, step.total = done, total

    def phase(self, label: str, text: str) -> None:
        """Note what of a step begins."""
        with self._changed:
            if label in self._open:
                self._open[label].phase = text

    def ended(self, label: str, seconds: float | None) -> None:
        """Tell what a step took, where it came to its end."""
        with self._changed:
            del self._open[label]
            self._changed.notify()
            teller = self._teller
            if not self._open:
                self._teller = None
        if teller is not None and self._teller is None:
            teller.join()
        if seconds is not None:
            since = time.perf_counter() - self._start
            whole = f", {duration(since)} since the start" if since >= 2 * max(seconds, 1.0) else ""
            self._write(f"{label}: done in {duration(seconds)}{whole}")

    def ahead(self, by_step: Mapping[str, float]) -> None:
        """Tell what is expected."""
        steps = ", ".join(f"{name} {duration(seconds)}" for name, seconds in by_step.items())
        self._write(f"expected: {duration(sum(by_step.values()))} in all ({steps})")

    def _tell(self) -> None:
        """Tell of the innermost step whenever it is due, until none is under way."""
        with self._changed:
            while self._open:
                label = next(reversed(self._open))
                step, now = self._open[label], time.perf_counter()
                if now < step.due:
                    self._changed.wait(step.due - now)
                    continue
                step.due = now + self._every
                self._write(self._line(label, step, now - step.begun))

    def _line(self, label: str, step: _Open, seconds: float) -> str:
        parts, rest = [step.phase] if step.phase else [], None
        if step.total and step.done:
            rest = seconds / step.done * (step.total - step.done)
            parts += [f"{step.done / step.total:.0%}", f"{duration(seconds)}, about {duration(rest)} left"]
        elif seconds >= self._every:
            parts.append(f"{duration(seconds)} so far")
        place, left = self._course.place, self._course.left_with(rest)
        if left and place is not None:
            parts.append(f"{duration(left)} left of the whole run")
        before = f"step {place[0]} of {place[1]}: " if place is not None else ""
        return f"{before}{label}" + (f": {', '.join(parts)}" if parts else " ...")
