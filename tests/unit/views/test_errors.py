from __future__ import annotations

import io

from rich.console import Console

from spq_graph.terms.errors import UsageError
from spq_graph.views.errors import print_error


def test_errors_say_what_where_and_how_to_go_on() -> None:
    console = Console(file=io.StringIO(), width=40)
    print_error(UsageError("unknown key [red]", where="a/" * 40 + "recipe.toml", remedy="remove it"), console)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "error: unknown key [red]",
        "   in: " + "a/" * 40 + "recipe.toml",
        "  try: remove it",
    ]


def test_of_a_name_without_an_end_the_middle_is_left_out() -> None:
    console = Console(file=io.StringIO(), width=40)
    print_error(UsageError(f"node '{'x' * 70_000}' (Mul) is odd\x1b[31m", where="a" * 4000), console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert len(said) < 3000
    assert "70002" not in said
    assert "' (Mul) is odd\\x1b[31m" in said
