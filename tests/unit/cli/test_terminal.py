"""What a run shows on standard error: bars on a terminal, lines elsewhere, and remarks anywhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from spq_graph.cli import terminal


def run(*, is_terminal: bool) -> str:
    """What two steps show, of which one has a remark and the other fails."""
    file = io.StringIO()
    steps = terminal.steps(Console(file=file, force_terminal=is_terminal, color_system=None, width=80))
    with steps.step("one", "Measuring") as tick:
        tick(1, 2)
        steps.remark("no row [bold]: left out")
        tick(2, 2)
    with pytest.raises(ValueError, match="odd"), steps.step("two", "Writing"):
        raise ValueError("odd")
    return file.getvalue()


def test_a_step_has_a_bar_and_leaves_a_line_where_it_came_to_its_end() -> None:
    shown = run(is_terminal=True)
    assert "Measuring" in shown
    assert "2/2" in shown
    assert "no row [bold]: left out\n" in shown
    assert "✓ Measuring 0.0 s\n" in shown
    assert "Writing" in shown
    assert "✓ Writing" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 2  # the cursor is back where a step failed, too


def test_what_is_no_terminal_gets_a_line_for_each_step_that_came_to_its_end() -> None:
    assert run(is_terminal=False) == "no row [bold]: left out\nMeasuring: done in 0.0 s\n"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_quiet_leaves_remarks_alone(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal.telling.get(), "quiet", True)
    assert run(is_terminal=is_terminal) == "no row [bold]: left out\n"


def test_a_terminal_is_told_which_step_this_is_and_what_the_run_still_takes() -> None:
    file = io.StringIO()
    steps = terminal.steps(Console(file=file, force_terminal=True, color_system=None, width=160))
    with steps.step("open"):
        pass
    steps.expect({"open": 0.0, "calibrate": 70.0, "apply": 5.0})
    with steps.step("calibrate", "Calibrating") as tick:
        tick(1, 2)
        steps.phase("Calibrating", "the second half")
    shown = file.getvalue()
    assert "expected: 1 min 15 s in all" in shown
    assert "step 2/3, 1 min 15 s left in all" in shown
    assert "Calibrating: the second half" in shown
