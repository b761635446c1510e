"""Signals that ask for the end are noted, and honoured where nothing is half done.

A handler notes the signal and unwinds what runs by `Interrupted`, but where `held` says that something must not be left
in the middle: then at its end. What swallows the exception (a callback of the garbage collector does) loses nothing:
the note stays, the signal comes again, and `check` asks for it before anything gets its name and before a run says that
it is done. A second signal removes what was being made and ends the process at once; so does the first one where
`never_unwound` says that what runs cannot be left by an exception.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

# Those that there are on this system; the end of a terminal (HUP) is a request to end like any other.
ASKING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_AGAIN = 0.05  # seconds
_SHOW_CURSOR = "\x1b[?25h"


class Interrupted(SystemExit):
    """A signal asks for the end; the process ends with 128 and its number, as shells have it.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.status = 128 + number
        super().__init__(self.status)


class _State:
    """What there is one of in a process.

    Attributes:
        number: of the first signal that came; None as long as none did.
        twice: whether another came after it.
        again: whether the next one is the first one's repetition, which counts as none.
        held: how many blocks are open that must not be left.
        foreign: how many blocks are open that no exception may unwind.
        making: files and folders that vanish if the process ends at once.
        complete: what has got its name, in words.
        told_on: descriptor of what people read; standard error, but where that is led away for a while.
    """

    # No dataclass: what that imports takes longer than all else until signals are watched.
    __slots__ = ("again", "complete", "foreign", "held", "making", "number", "told_on", "twice")

    def __init__(self) -> None:
        self.number: int | None = None
        self.twice = self.again = False
        self.held = self.foreign = 0
        self.making: set[Path] = set()
        self.complete: list[str] = []
        self.told_on = 2


_state = _State()


def watch() -> None:
    """Take INT, TERM and HUP as this file says from now on.

    A signal that is ignored already stays so: a shell has it so of what runs in the background, and nohup of HUP.
    """
    if signal.getsignal(signal.SIGTERM) is _on_signal:
        return
    _state.number, _state.twice, _state.again = None, False, False
    _state.complete.clear()
    sys.unraisablehook = _swallowed
    _answer(_on_signal)


@contextmanager
def heard() -> Iterator[None]:
    """A run whose status the shell gets; none in which a signal came ends with 0, nor with an error that came of it.

    Raises:
        Interrupted: a signal came before the run was done. One that comes later finds nothing left to end.
    """
    try:
        yield
    except Interrupted:
        raise
    except SystemExit as stop:
        _heed()
        done = stop.code in (0, None)
        # Python's own handler of INT raises, and nobody hears of that while the interpreter goes down.
        _answer(signal.SIG_IGN if done else signal.SIG_DFL)
        raise
    except BaseException:
        _heed()  # a library may have turned what unwound it into an error of its own
        _answer(signal.SIG_DFL)
        raise


@contextmanager
def awaited(number: int) -> Iterator[None]:
    """A block that a signal ends as it should: whoever waits in there may catch what unwinds it, and all is well."""
    try:
        yield
    except Interrupted as stop:
        if stop.number != number:
            raise
    if _state.number == number:
        _state.number = None


def leave(status: int) -> NoReturn:
    """End an interrupted process without waiting for its threads, nor for C++ destructors, which abort beside those."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    _remove_what_is_in_the_making()  # nothing, but where the signal came in front of its removal
    atexit._run_exitfuncs()
    os._exit(status)


def check() -> None:
    """A place that may be left: raise what a signal asked for, in the main thread, where it is not on its way already.

    Raises:
        Interrupted: a signal came.
    """
    if _state.number is not None and _in_main_thread() and not _on_its_way():
        _raise(_state.number)


@contextmanager
def held() -> Iterator[None]:
    """A block of the main thread that no signal leaves in the middle; one that came is honoured at its end."""
    if not _in_main_thread():
        yield
        return
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
        if not _state.held and _state.number is not None and (_state.twice or _state.foreign):
            _end_at_once(_state.number)
    if not _state.held:
        check()


@contextmanager
def never_unwound() -> Iterator[None]:
    """A block of somebody else's code that a signal ends with the process, and not by an exception.

    torch's C++ aborts where one comes out of a callback into Python, and what keeps stacks of its own (torch's modes)
    fails at the next step if some of its frames were left in the middle.
    """
    _state.foreign += 1
    try:
        yield
    finally:
        _state.foreign -= 1


@contextmanager
def told_on(descriptor: int) -> Iterator[None]:
    """A block in which standard error leads elsewhere, and this descriptor to where people read."""
    before, _state.told_on = _state.told_on, descriptor
    try:
        yield
    finally:
        _state.told_on = before


def begun(path: Path) -> None:
    """From now on something is being made at a path: it vanishes, should the process end by a signal."""
    _state.making.add(path)


def ended(path: Path) -> None:
    """What was being made has its name, or is removed."""
    _state.making.discard(path)


def completed(what: str) -> None:
    """Take note of what has got its name, in words: who interrupts a run after that is told so."""
    _state.complete.append(what)


def told(stop: BaseException) -> str:
    """What an interrupted run left, in words: what is complete, what `add_note` says of it, or nothing."""
    return "; ".join([*_state.complete, *getattr(stop, "__notes__", [])]) or "nothing was left behind"


def _answer(how: Any) -> None:
    for number in ASKING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, how)


def _on_signal(number: int, _frame: object) -> None:
    repeated, _state.again = _state.again, False
    if _state.number is None:
        _state.number = number
    elif not repeated:
        _state.twice = True
    if _state.held:
        return
    if _state.twice or _state.foreign:
        _end_at_once(_state.number)
    if not _on_its_way():
        _raise(_state.number)


def _heed() -> None:
    if _state.number is not None:
        _raise(_state.number)


def _raise(number: int) -> NoReturn:
    raise Interrupted(number)


def _end_at_once(number: int) -> NoReturn:
    """Without unwinding, which would wait for threads."""
    _remove_what_is_in_the_making()
    with suppress(OSError):
        left = "; ".join(_state.complete) or "nothing half done was left behind"
        twice = " twice" * _state.twice
        shown = _SHOW_CURSOR * os.isatty(_state.told_on)  # a bar that is drawn hides it
        os.write(_state.told_on, f"{shown}interrupted{twice}; {left}\n".encode(errors="replace"))
    os._exit(128 + number)


def _remove_what_is_in_the_making() -> None:
    for path in [*_state.making] * 3:  # other threads may still write
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _swallowed(unraisable: sys.UnraisableHookArgs) -> None:
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    timer = threading.Timer(_AGAIN, _come_again, [unraisable.exc_value.number])
    timer.daemon = True
    timer.start()


def _come_again(number: int) -> None:
    if signal.getsignal(number) is _on_signal:
        _state.again = True
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _on_its_way() -> bool:
    """Whether what runs is the unwinding of an `Interrupted`, which another one must not cut short."""
    cause = sys.exception()
    while cause is not None and not isinstance(cause, Interrupted):
        cause = cause.__context__
    return cause is not None
