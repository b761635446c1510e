"""Lines about a run: one for each step, and no long silence in a step that takes long."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from spq_graph.cli.lines import Lines
from spq_graph.workbench.steps import Course, Steps

EVERY = 0.2


@contextmanager
def told(soon: float = 0.05) -> Iterator[tuple[Steps, list[tuple[float, str]]]]:
    """Steps, and what is told of them with the time at which it was."""
    found: list[tuple[float, str]] = []
    course = Course()
    lines = Lines(lambda text: found.append((time.perf_counter(), text)), course, soon, EVERY)
    yield (Steps(watch=lines.watch, ended=lines.ended, phase=lines.phase, ahead=lines.ahead, course=course), found)


def test_a_short_step_has_one_line() -> None:
    with told(soon=10.0) as (steps, found), steps.step("one", "Writing"):
        pass
    assert [line for _, line in found] == ["Writing: done in 0.0 s"]


def test_a_long_step_that_tells_nothing_itself_is_told_of_again_and_again() -> None:
    start = time.perf_counter()
    with told() as (steps, found), steps.step("export", "Exporting"):
        steps.phase("Exporting", "tracing the model")
        time.sleep(1.1)  # as an exporter does, without a tick
    assert found[0][1] == "Exporting: tracing the model"
    assert all(re.fullmatch(r"Exporting: tracing the model, \d\.\d s so far", line) for _, line in found[1:-1])
    assert found[-1][1].startswith("Exporting: done in 1.")
    times = [start, *(at for at, _ in found)]
    assert max(b - a for a, b in pairwise(times)) < 2.5 * EVERY


def test_a_long_step_tells_its_share_and_what_is_left_of_it_and_of_the_run() -> None:
    with told() as (steps, found):
        steps.expect({"calibrate": 3.0, "apply": 60.0})
        with steps.step("calibrate", "Calibrating") as tick:
            for done in range(1, 4):
                tick(done, 4)
                time.sleep(0.2)
    assert found[0][1] == "expected: 1 min 03 s in all (calibrate 3.0 s, apply 1 min 00 s)"
    words = r"step 1 of 2: Calibrating: \d\d%, \d\.\d s, about \d\.\d s left, 1 min 0\d s left of the whole run"
    assert any(re.fullmatch(words, line) for _, line in found), found


def test_a_step_that_fails_has_no_last_line_and_leaves_no_thread() -> None:
    with told(soon=10.0) as (steps, found):
        try:
            with steps.step("one", "Writing"):
                raise ValueError
        except ValueError:
            pass
    assert found == []


def test_of_steps_within_each_other_the_inner_one_is_told_of() -> None:
    with told() as (steps, found), steps.step("evaluate", "Evaluating"):
        with steps.step("export", "Exporting"):
            time.sleep(0.3)
        time.sleep(0.5)
    lines = [line for _, line in found]
    assert lines[0] == "Exporting ..."
    assert lines[-1].startswith("Evaluating: done in")
    assert any(line.startswith("Evaluating") for line in lines[:-1])


def test_the_course_counts_down() -> None:
    course = Course({"a": 1.0, "b": 2.0, "c": 3.0})
    assert (course.place, course.left) == (None, 6.0)
    course.over.add("a")
    course.begun["b"] = time.perf_counter() - 1.5
    assert course.place == (2, 3)
    assert course.left is not None
    assert 3.4 < course.left < 3.6
    course.begun["b"] -= 10
    assert course.left == 3.0
    assert Course().left is None
