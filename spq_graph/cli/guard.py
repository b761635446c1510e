"""Errors for people, exit statuses, and interrupts that leave nothing behind."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from spq_graph import __version__
from spq_graph.terms.errors import SpqError
from spq_graph.views.errors import print_error

_HERE = Path(__file__).resolve().parents[1]


@contextmanager
def errors_for_people(console: Console) -> Iterator[None]:
    """Turn errors into a message and an exit status."""
    try:
        yield
    except SpqError as error:
        print_error(error, console)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as interrupt:
        left = "; ".join(getattr(interrupt, "__notes__", ["nothing was left behind"]))
        console.print(f"interrupted; {left}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        where = str(error.filename or "")
        print_error(SpqError(f"the system refuses: {error.strerror or error}", where=where), console)
        sys.exit(1)
    except MemoryError as error:
        remedy = "close what else takes memory, or lower --memory-limit where the command has it"
        print_error(SpqError(f"there is not enough memory: {error}", remedy=remedy), console)
        sys.exit(1)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a library's own faults are no Exceptions: pyo3's PanicException
        print_error(fault(error), console)
        sys.exit(1)


def fault(error: BaseException) -> SpqError:
    """What is said of an error that nobody foresaw: that it is ours, where it came up, and how to report it."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_ours(frame.filename)]
    place = f"{_short(ours[-1].filename)}:{ours[-1].lineno}" if ours else ""
    first = (str(error).splitlines() or [""])[0]
    told = _told(error)
    kept = f"with {told}" if told else "with this message"
    return SpqError(
        f"this is a fault of spq-graph, not of yours ({type(error).__name__}{f': {first}' if first else ''})",
        where=f"spq-graph {__version__}, {place}",
        remedy=f"report it {kept}, and with the input if you can: its graph without its weights will do",
    )


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(_HERE) or Path(file).resolve().is_relative_to(_HERE.parent)


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(_HERE.parent)) if path.is_relative_to(_HERE.parent) else path.name


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


def on_terminate(number: int, _frame: object) -> NoReturn:
    """Signal handler: unwind, so that half an OUT is removed."""
    raise SystemExit(128 + number)
