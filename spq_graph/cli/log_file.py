"""A file that keeps what is told of runs: lines with the time of day, added to what earlier runs told."""

from __future__ import annotations

import shlex
import sys
import threading
from datetime import datetime
from pathlib import Path

from spq_graph import __version__
from spq_graph.documents.tables import printable
from spq_graph.terms.errors import OutputError

_BEGINS = b"spq-graph log\n"


class LogFile:
    """Takes lines from any thread, each of which is in the file when the call returns.

    Args:
        path: the file; made where there is none.

    Raises:
        OutputError: it cannot be written, or is something else than a log of ours, which is left as it is.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            new = not path.exists() or (path.is_file() and not path.stat().st_size)
            if not new and not (path.is_file() and _is_ours(path)):  # opening a pipe would wait for a reader
                raise OutputError("this is not a log of spq-graph", where=str(path), remedy="name another --log-file")
            self._file = path.open("ab")
        except OSError as cause:
            raise OutputError(
                f"the log cannot be written: {cause.strerror or cause}",
                where=str(path),
                remedy="name a file in a folder that can be written to",
            ) from cause
        if new:
            self._file.write(_BEGINS)
        self.write(f"spq-graph {__version__}: {shlex.join(['spq-graph', *sys.argv[1:]])}")

    def write(self, text: str) -> None:
        """Add lines; a disk that is full ends the log and not the run."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with self._lock:
            try:
                for line in text.splitlines():
                    self._file.write(f"{now} {printable(line)}\n".encode(errors="backslashreplace"))
                self._file.flush()
            except (OSError, ValueError):
                pass

    def close(self) -> None:
        """Nothing is added from now on."""
        with self._lock:
            self._file.close()


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_BEGINS)) == _BEGINS
