"""Errors for people, exit statuses, and interrupts that leave nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console

from spq_graph.cli.faults import fault
from spq_graph.terms.errors import SpqError
from spq_graph.views.errors import print_error


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
        where, remedy = str(error.filename or ""), "see that it can be read and written, and that the disk has room"
        print_error(SpqError(f"the system refuses: {error.strerror or error}", where=where, remedy=remedy), console)
        sys.exit(1)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a library's own faults are no Exceptions: pyo3's PanicException
        print_error(fault(error), console)
        sys.exit(1)


def on_terminate(number: int, _frame: object) -> NoReturn:
    """Signal handler: unwind, so that half an OUT is removed."""
    raise SystemExit(128 + number)
