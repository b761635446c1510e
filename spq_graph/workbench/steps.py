"""Timed steps: quiet by themselves, and told to whoever shows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from spq_graph.documents.interrupts import check

Tick = Callable[[int, int], None]
"""Takes how much is done, and of how much."""
Watch = Callable[[str, int, int], None]
"""Takes what is being done, in words, how much of it is done, and of how much."""
Phase = Callable[[str, str], None]
"""Takes what is being done, in words, and what of it begins, in words."""
Ended = Callable[[str, float | None], None]
"""Takes what was being done, in words, and the seconds that it took; None where it came to no end."""
Ahead = Callable[[Mapping[str, float]], None]
"""Takes the seconds that each step is expected to take, by name, as soon as that is known."""
Remark = Callable[[str], None]
"""Takes a sentence about what is done otherwise than asked."""
Heard = Callable[[str], None]
"""Takes what libraries printed, a text of one or more lines."""


def _unheard(*_: object) -> None:
    pass


@dataclass(slots=True)
class Course:
    """How far a run is.

    Attributes:
        expected: seconds that each step takes, by name, those that are over among them; empty before that is known.
        over: names of steps that are over.
        begun: when each step that is under way began, by name.
    """

    expected: dict[str, float] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    begun: dict[str, float] = field(default_factory=dict)

    @property
    def place(self) -> tuple[int, int] | None:
        """Which step is under way, from 1, and how many there are; None where that is not known."""
        names = list(self.expected)
        here = [names.index(name) + 1 for name in self.begun if name in self.expected]
        return (here[0], len(names)) if here else None

    @property
    def left(self) -> float | None:
        """Seconds to the end of the run, as far as is known; None where nothing is."""
        return self.left_with(None)

    def left_with(self, rest: float | None) -> float | None:
        """The same, where the step under way is seen to take so many seconds more, whatever was expected of it."""
        if not self.expected:
            return None
        now, place = time.perf_counter(), self.place
        left = {
            name: max(0.0, seconds - (now - self.begun[name] if name in self.begun else 0.0))
            for name, seconds in self.expected.items()
            if name not in self.over
        }
        if rest is not None and place is not None and (here := list(self.expected)[place[0] - 1]) in left:
            left[here] = rest
        return sum(left.values())


@dataclass(slots=True)
class Steps:
    """The steps of one run, and who is told of them; by default nobody.

    Attributes:
        watch: is told of every step as it begins, with 0 of 0, and whenever more of it is done.
        remark: is told of what is left out, and what makes figures doubtful, and why.
        ended: is told of every step that is over.
        heard: is told what libraries printed while a model was loaded and exported. Where it is given, what C and Rust
            write to the process's descriptors 1 and 2 is held back as well.
        phase: is told what of a step begins, where that is all that can be told of how far it is.
        ahead: is told what every step is expected to take, before those that take long begin; to know it takes a
            while, which is spent only where this is given.
        seconds: wall time by step, in order.
        course: how far the run is.
    """

    watch: Watch = _unheard
    remark: Remark = _unheard
    ended: Ended = _unheard
    heard: Heard | None = None
    phase: Phase = _unheard
    ahead: Ahead | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    course: Course = field(default_factory=Course)

    @classmethod
    def bars(cls, bar: Any) -> Steps:
        """Steps shown as bars of tqdm, in a terminal or a notebook.

        Args:
            bar: the class, such as `tqdm` of `tqdm.auto`.
        """
        shown: dict[str, Any] = {}

        def watch(label: str, done: int, total: int) -> None:
            if label not in shown:
                shown[label] = bar(desc=label, total=None)
            if total and shown[label].total != total:
                shown[label].reset(total=total)
            shown[label].update(done - shown[label].n)

        def ended(label: str, seconds: float | None) -> None:
            shown.pop(label).close()

        return cls(watch=watch, ended=ended, remark=bar.write)

    def expect(self, by_step: Mapping[str, float]) -> None:
        """Note, and tell, what every step takes; those that are over stand there with what they took."""
        self.course.expected = dict(by_step)
        if self.ahead is not None:
            self.ahead(by_step)

    @contextmanager
    def step(self, name: str, label: str | None = None) -> Iterator[Tick]:
        """Time a step and tell of it; the yielded function takes how much is done, and of how much."""
        start, label = time.perf_counter(), label or name

        def tick(done: int, total: int) -> None:
            check()
            self.watch(label, done, total)

        took = None
        self.course.begun[name] = start
        tick(0, 0)
        try:
            yield tick
            took = self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
        finally:
            self.course.begun.pop(name, None)
            self.course.over.add(name)
            self.ended(label, took)
