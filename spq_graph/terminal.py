"""Where every verb's output goes. Results on standard output, progress and errors on standard error."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer
from rich.console import Console

from spq_graph.progress import Steps

errors = Console(stderr=True)


def steps() -> Steps:
    """A new run's steps, shown on standard error."""
    return Steps(errors)


def print_json(data: dict[str, Any]) -> None:
    """Print one JSON object."""
    typer.echo(json.dumps(data, ensure_ascii=False, indent=1))


def write_text(text: str) -> None:
    """Print a piece of a model's text at once; on a terminal without the control characters that could act there."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()
