"""Runs commands that signals reach: a process that has everything imported, and forks one child for each run.

As a program it reads one run a line, JSON, and answers each with one line: `{"status": ..., "seconds": ...}`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240  # seconds


@dataclass(frozen=True)
class Run:
    """A command, and the signals that reach it.

    Attributes:
        arguments: of `spq-graph`.
        temporary: the folder that it has for temporary files.
        log: the file that it prints into.
        signals: what it is sent, one after the other.
        after: seconds until the first of them, from when signals are watched; None for none by the clock.
        rename: before which rename the signals come, counted from 0, or behind it; None for none there.
        tick: at which telling of how far the run is they come, counted from 1; None for none there.
        behind: whether behind.
        gap: seconds between two signals.
    """

    arguments: Sequence[str]
    temporary: str
    log: str
    signals: Sequence[int] = ()
    after: float | None = None
    rename: int | None = None
    tick: int | None = None
    behind: bool = False
    gap: float = 0.0


@dataclass(frozen=True)
class Ended:
    """How it ended: the status as `subprocess` has it, after how many seconds, and what it printed."""

    status: int
    seconds: float
    said: str


class Signalled:
    """The process that forks."""

    def __init__(self) -> None:
        environment = os.environ | {"ORT_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.signalled"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def run(self, what: Run) -> Ended:
        """Run one command to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(what)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(answer["status"], answer["seconds"], Path(what.log).read_text(encoding="utf-8"))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def _send(process: int, what: Run) -> None:
    for number in what.signals:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            return
        time.sleep(what.gap)


def _child(what: Run, ready: int) -> None:
    """Become the command: returns only by the exception that ends it."""
    descriptor = os.open(what.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ["TMPDIR"] = tempfile.tempdir = what.temporary
    if what.rename is not None:
        _watch_renames(what)
    if what.tick is not None:
        _watch_ticks(what)
    sys.argv = ["spq-graph", *what.arguments]
    from spq_graph.__main__ import main, watch

    watch()  # the first thing that the command does; before, a signal finds nothing that was begun
    os.write(ready, b".")
    main()


def _watch_renames(what: Run) -> None:
    count = 0

    def watched(plain: Callable[..., Any]) -> Callable[..., Any]:
        def rename(*arguments: Any, **more: Any) -> Any:
            nonlocal count
            here, count = count == what.rename, count + 1
            if here and not what.behind:
                _send(os.getpid(), what)
            found = plain(*arguments, **more)
            if here and what.behind:
                _send(os.getpid(), what)
            return found

        return rename

    os.rename, os.replace = watched(os.rename), watched(os.replace)


def _watch_ticks(what: Run) -> None:
    from spq_graph.workbench import steps

    count, plain = 0, steps.check

    def check() -> None:
        nonlocal count
        count += 1
        if count == what.tick:
            _send(os.getpid(), what)
        plain()

    steps.check = check


def _waited(process: int) -> int:
    """How a child ended; one that hangs is aborted, which no run may end by.

    That is one that takes the processor for long, or for long none of it: a busy machine lets everybody wait.
    """
    took, since = 0.0, time.monotonic()
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return status
        now, used = time.monotonic(), _processor_time(process)
        if used > took:
            took, since = used, now
        if took > PATIENCE or now - since > PATIENCE:
            os.kill(process, signal.SIGABRT)
        time.sleep(0.002)


def _processor_time(process: int) -> float:
    """Seconds; 0 where the system does not say so, and as long as there are none."""
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def serve() -> None:
    """Fork a child for each line; in the child this ends with the command's own exception."""
    for name in ("onnxruntime", "spq_graph.cli.app", "spq_graph.jobs.quantize"):
        importlib.import_module(name)

    with suppress(ImportError):  # without torch nothing is exported
        importlib.import_module("spq_graph.models.export")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    while line := sys.stdin.readline():
        what = Run(**json.loads(line))
        sys.stdout.flush()
        watches, ready = os.pipe()
        process = os.fork()
        if not process:
            _child(what, ready)
        os.read(watches, 1)
        start = time.monotonic()
        for descriptor in (watches, ready):
            os.close(descriptor)
        if what.after is not None:
            time.sleep(what.after)
            _send(process, what)
        status = _waited(process)
        seconds = time.monotonic() - start
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "seconds": seconds}), flush=True)


if __name__ == "__main__":
    serve()
