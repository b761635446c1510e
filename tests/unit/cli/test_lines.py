"""Lines about a run: one for each step, and no long silence in a step that takes long."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import TypeAlias

import pytest

from spq_graph.cli.lines import Lines
from spq_graph.workbench.steps import Course, Steps

EVERY = 0.2


class Clock:
    """Seconds that pass only where a test sleeps, and in which whoever waits for a time is on time.

    On a busy machine threads wake late, and lines come later than they are due.
    """

    def __init__(self) -> None:
        self.now, self._until = 0.0, 0.0
        self._there, self._changed = threading.Event(), threading.Condition()

    def drive(self, changed: threading.Condition, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give the time to who waits for this condition."""
        self._changed, wait = changed, changed.wait

        def waited(timeout: float = math.inf) -> bool:
            if self.now + timeout <= self._until:
                self.now += timeout
                return False
            self.now = self._until
            self._there.set()
            return wait()

        monkeypatch.setattr(changed, "wait", waited)

    def sleep(self, seconds: float) -> None:
        """Let time pass for the thread that tells of a step."""
        with self._changed:
            self._there.clear()
            self._until = self.now + seconds
            self._changed.notify()
        assert self._there.wait(60)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: found.now)
    return found


Told: TypeAlias = tuple[Steps, list[tuple[float, str]]]
Tell: TypeAlias = Callable[..., AbstractContextManager[Told]]


@pytest.fixture
def told(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Tell:
    """Steps, and what is told of them with the time at which it was."""

    @contextmanager
    def tell(soon: float = 0.05) -> Iterator[Told]:
        found: list[tuple[float, str]] = []
        course = Course()
        lines = Lines(lambda text: found.append((clock.now, text)), course, soon, EVERY)
        clock.drive(lines._changed, monkeypatch)
        yield (Steps(watch=lines.watch, ended=lines.ended, phase=lines.phase, ahead=lines.ahead, course=course), found)

    return tell


def test_a_short_step_has_one_line(told: Tell) -> None:
    with told(soon=10.0) as (steps, found), steps.step("one", "Writing"):
        pass
    assert [line for _, line in found] == ["Writing: done in 0.0 s"]


def test_a_long_step_that_tells_nothing_itself_is_told_of_again_and_again(told: Tell, clock: Clock) -> None:
    with told() as (steps, found), steps.step("export", "Exporting"):
        steps.phase("Exporting", "tracing the model")
        clock.sleep(1.1)  # as an exporter does, without a tick
    assert found[0][1] == "Exporting: tracing the model"
    assert all(re.fullmatch(r"Exporting: tracing the model, \d\.\d s so far", line) for _, line in found[1:-1])
    assert found[-1][1].startswith("Exporting: done in 1.")
    times = [0.0, *(at for at, _ in found)]
    assert max(b - a for a, b in pairwise(times)) == pytest.approx(EVERY)


def test_a_long_step_tells_its_share_and_what_is_left_of_it_and_of_the_run(told: Tell, clock: Clock) -> None:
    with told() as (steps, found):
        steps.expect({"calibrate": 3.0, "apply": 60.0})
        with steps.step("calibrate", "Calibrating") as tick:
            for done in range(1, 4):
                tick(done, 4)
                clock.sleep(0.2)
    assert found[0][1] == "expected: 1 min 03 s in all (calibrate 3.0 s, apply 1 min 00 s)"
    words = r"step 1 of 2: Calibrating: \d\d%, \d\.\d s, about \d\.\d s left, 1 min 0\d s left of the whole run"
    assert any(re.fullmatch(words, line) for _, line in found), found


def test_a_step_that_fails_has_no_last_line_and_leaves_no_thread(told: Tell) -> None:
    with told(soon=10.0) as (steps, found):
        try:
            with steps.step("one", "Writing"):
                raise ValueError
        except ValueError:
            pass
    assert found == []


def test_of_steps_within_each_other_the_inner_one_is_told_of(told: Tell, clock: Clock) -> None:
    with told() as (steps, found), steps.step("evaluate", "Evaluating"):
        with steps.step("export", "Exporting"):
            clock.sleep(0.3)
        clock.sleep(0.5)
    lines = [line for _, line in found]
    assert lines[0] == "Exporting ..."
    assert lines[-1].startswith("Evaluating: done in")
    assert any(line.startswith("Evaluating") for line in lines[:-1])


def test_the_course_counts_down(clock: Clock) -> None:
    course = Course({"a": 1.0, "b": 2.0, "c": 3.0})
    assert (course.place, course.left) == (None, 6.0)
    course.over.add("a")
    course.begun["b"] = clock.now - 1.5
    assert course.place == (2, 3)
    assert course.left == 3.5
    course.begun["b"] -= 10
    assert course.left == 3.0
    assert course.left_with(7.0) == 10.0  # what is seen of the step under way
    course.over.add("b")
    del course.begun["b"]
    assert course.left_with(7.0) == 3.0
    assert Course().left is None
