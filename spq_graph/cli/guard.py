"""Errors for people, exit statuses, and interrupts that leave nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console

from spq_graph.cli.faults import fault
from spq_graph.documents.interrupts import Interrupted, leave, told
from spq_graph.terms.errors import SpqError
from spq_graph.views.errors import print_error


def _unheard(_: SpqError) -> None:
    pass


@contextmanager
def errors_for_people(console: Console, also: Callable[[SpqError], None] = _unheard) -> Iterator[None]:
    """Turn errors into a message and an exit status; `also` is told of each."""

    def tell(error: SpqError) -> None:
        also(error)
        print_error(error, console)

    try:
        yield
    except SpqError as error:
        tell(error)
        sys.exit(error.exit_code)
    except Interrupted as interrupt:
        with suppress(OSError):  # the terminal may be what ended
            console.show_cursor()
            console.print(f"interrupted; {told(interrupt)}", markup=False, highlight=False, soft_wrap=True)
        leave(interrupt.status)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        where, remedy = str(error.filename or ""), "see that it can be read and written, and that the disk has room"
        tell(SpqError(f"the system refuses: {error.strerror or error}", where=where, remedy=remedy))
        sys.exit(1)
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a library's own faults are no Exceptions: pyo3's PanicException
        tell(fault(error))
        sys.exit(1)
