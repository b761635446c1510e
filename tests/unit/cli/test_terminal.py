"""What a run shows on standard error: bars on a terminal, and remarks anywhere."""

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


def test_what_is_no_terminal_gets_remarks_alone() -> None:
    assert run(is_terminal=False) == "no row [bold]: left out\n"
