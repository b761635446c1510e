"""Steps as bars of tqdm, which must be installed for that alone."""

from __future__ import annotations

import io

import pytest

from spq_graph.workbench.steps import Steps


def test_bars_of_tqdm() -> None:
    tqdm = pytest.importorskip("tqdm").tqdm
    file = io.StringIO()
    written: list[str] = []

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, **options: object) -> None:
            super().__init__(**options, file=file, mininterval=0)

        @classmethod
        def write(cls, text: str, **_: object) -> None:
            written.append(text)

    steps = Steps.bars(Bar)
    with steps.step("one", "Measuring") as tick:
        tick(1, 4)
        steps.remark("a row is left out")
        tick(4, 4)
    with steps.step("two"):
        pass
    shown = file.getvalue()
    assert "Measuring:  25%" in shown
    assert "4/4" in shown
    assert "two" in shown
    assert written == ["a row is left out"]


def test_what_is_expected_is_told_and_kept() -> None:
    told: list[object] = []
    steps = Steps(ahead=told.append)
    steps.expect({"one": 2.0})
    assert told == [{"one": 2.0}]
    assert steps.course.left == 2.0
    with steps.step("one"):
        assert steps.course.place == (1, 1)
    assert (steps.course.place, steps.course.left) == (None, 0)
