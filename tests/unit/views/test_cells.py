"""Tables in the terminal: what stands in them stands there as it is."""

from __future__ import annotations

from rich.console import Console

from spq_graph.views import cells


def test_brackets_in_a_heading_are_no_markup() -> None:
    made = cells.table("weight [row, column]", "[bold]")
    made.add_row("w", "1")
    console = Console(width=80)
    with console.capture() as captured:
        console.print(made)
    heading = captured.get().splitlines()[1]
    assert "weight [row, column]" in heading
    assert "[bold]" in heading
