"""Runs the command line in this process: a fresh interpreter for every call would take most of the suite's time."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from spq_graph.cli.app import main
from spq_graph.documents.interrupts import ASKING


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out, parse_constant=_refuse)


@dataclass(frozen=True)
class Case:
    """A decoder with one planted spike, its data, and what `quantize` made of it."""

    model: Path
    calibration: Path
    text: Path
    out: Path
    result: Result


def _refuse(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def spq(*arguments: object) -> Result:
    """`spq-graph` with these arguments."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    handlers = {number: signal.getsignal(number) for number in ASKING}
    argv = ["spq-graph", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "unraisablehook"),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Result(code, out.getvalue(), err.getvalue())


def done(*arguments: object) -> Result:
    """The same, and it must end well."""
    result = spq(*arguments)
    assert result.code == 0, result.err
    return result


def contents(*places: Path) -> dict[str, str]:
    """Digest of every file under some places, to tell whether anything was touched."""
    files = [f for place in places for f in ([place] if place.is_file() else sorted(place.rglob("*")))]
    return {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files if f.is_file()}
