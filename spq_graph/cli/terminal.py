"""Where every verb's output goes. Results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console

from spq_graph.workbench.steps import Steps

errors = Console(stderr=True)


def steps() -> Steps:
    """The steps of a new run, shown on standard error."""
    return Steps(errors)


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=1))


def answer(data: dict[str, Any], words: Iterable[str], *, as_json: bool) -> None:
    """Print what came of a verb: one JSON object, or lines of text for people."""
    if as_json:
        print_json(data)
        return
    for line in words:
        typer.echo(line)


def write_text(text: str) -> None:
    """Print a piece of a model's text at once; on a terminal without the control characters that could act there."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()
