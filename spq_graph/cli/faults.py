"""What is said of errors that nobody foresaw: that they are ours, where they came up, and how to report them."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import traceback
from pathlib import Path

from spq_graph import __version__
from spq_graph.terms.errors import SpqError

_HERE = Path(__file__).resolve().parents[1]


def fault(error: BaseException) -> SpqError:
    """What is said of an error that nobody foresaw, and of a machine without enough memory."""
    if isinstance(error, MemoryError):
        remedy = "close what else takes memory, or lower --memory-limit where the command has it"
        return SpqError(f"there is not enough memory: {error}", remedy=remedy)
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(_HERE)]
    place = f"{Path(ours[-1].filename).relative_to(_HERE.parent)}:{ours[-1].lineno}" if ours else "outside of it"
    first = (str(error).splitlines() or [""])[0]
    told = _told(error)
    kept = f"with {told}" if told else "with this message"
    return SpqError(
        f"this is a fault of spq-graph, not of yours ({type(error).__name__}{f': {first}' if first else ''})",
        where=f"spq-graph {__version__}, {place}",
        remedy=f"report it {kept}, and with the input if you can: its graph without its weights will do",
    )


def _told(error: BaseException) -> Path | None:
    """A file with the traceback and the command; None where none can be written."""
    lines = [f"spq-graph {__version__}, Python {sys.version.split()[0]}, {sys.platform}\n"]
    lines += [shlex.join(["spq-graph", *sys.argv[1:]]), "\n\n", *traceback.format_exception(error)]
    try:
        descriptor, name = tempfile.mkstemp(prefix="spq-graph-fault-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.writelines(lines)
    except OSError:
        return None
    return Path(name)
