"""What went wrong, in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from spq_graph.terms.errors import SpqError
from spq_graph.views import words


def print_error(error: SpqError, console: Console) -> None:
    """Say what is wrong, where, and what to do about it; long paths are left whole for copying."""
    text = Text.assemble(("error: ", "bold red"), (words.printable(error.what), "bold"))
    if error.where:
        text.append("\n   in: ", "dim").append(words.printable(error.where))
    if error.remedy:
        text.append("\n  try: ", "green").append(words.printable(error.remedy))
    if error.heard:
        lines = len(error.heard.splitlines())
        text.append("\n more: ", "dim").append(f"--verbose shows what the libraries printed, {lines} lines")
    console.print(text, soft_wrap=True, highlight=False)
