"""What libraries print while they load, trace and translate: held back, and handed to whoever wants to read it.

torch, transformers and onnxscript talk by prints, warnings, loggers with handlers of their own, and from C and Rust
straight to the descriptors. None of it is for people who run a verb: what matters arrives as an exception. To those who
look for the cause of one it is all there is, so nothing is thrown away where somebody listens.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import IO, Any, Final

from spq_graph.documents.interrupts import told_on

Heard = Callable[[str], None]
"""Takes what libraries printed, as one text of one or more lines."""
Hush = Callable[[], AbstractContextManager[None]]
"""Holds back what libraries print: `quiet` itself, or with arguments."""

_STDERR: Final = 2
_LOGGERS: Final = ("transformers", "torch", "onnxscript", "onnx_ir", "onnx", "peft", "accelerate", "huggingface_hub")


class _Ear(io.TextIOBase):
    """A standard stream that keeps what one thread writes and passes the rest on: a bar may be drawn by another."""

    encoding = "utf-8"

    def __init__(self, kept: list[str], through: Any) -> None:
        super().__init__()
        self._kept, self._through = kept, through
        self._owner: int | None = threading.get_ident()

    def let_go(self, through: Any) -> None:
        """Only pass on from now: a log handler that was made meanwhile holds this stream for good."""
        self._owner, self._through = None, through

    def write(self, text: str) -> int:
        if threading.get_ident() == self._owner:
            self._kept.append(text)
        else:
            self._through.write(text)
        return len(text)

    def flush(self) -> None:
        self._through.flush()

    def isatty(self) -> bool:
        return bool(self._through.isatty())

    def fileno(self) -> int:
        return int(self._through.fileno())


class _Log(logging.Handler):
    """Keeps log records as lines."""

    def __init__(self, kept: list[str]) -> None:
        super().__init__()
        self._kept = kept

    def emit(self, record: logging.LogRecord) -> None:
        self._kept.append(f"{record.name}: {record.levelname.lower()}: {record.getMessage()}\n")


@contextlib.contextmanager
def quiet(heard: Heard | None = None, *, descriptors: bool = False) -> Iterator[None]:
    """Holds back prints, warnings, logging and the loader's progress bars.

    Args:
        heard: is told at the end what was held back, if anything was.
        descriptors: hold the process's descriptors 1 and 2 as well, which is where C and Rust write. For a process of
            our own: in somebody else's, other threads may write there.
    """
    kept: list[str] = []
    try:
        with contextlib.ExitStack() as held:
            held.enter_context(
                _no_bars()
            )  # first: it may import transformers, whose log keeps the stream that it finds
            for number, name in ((1, "stdout"), (2, "stderr")):
                held.enter_context(_stream(number, name, kept, descriptor=descriptors))
            held.enter_context(_loggers(kept))
            held.enter_context(_warnings(kept))
            yield
    finally:
        if heard is not None and (text := "".join(kept)).strip():
            heard(text)


@contextlib.contextmanager
def _stream(number: int, name: str, kept: list[str], *, descriptor: bool) -> Iterator[None]:
    """Put an ear in the place of a standard stream, and lead its descriptor away as well if that is asked for."""
    before = getattr(sys, name)
    real = getattr(before, "rich_proxied_file", before)  # while a bar is drawn, a proxy of rich's stands there
    with contextlib.ExitStack() as held:
        through = held.enter_context(_descriptor(number, real, kept)) if descriptor else real
        ear = _Ear(kept, through)
        setattr(sys, name, ear)
        try:
            yield
        finally:
            setattr(sys, name, before)
            ear.let_go(real)


@contextlib.contextmanager
def _descriptor(number: int, stream: Any, kept: list[str]) -> Iterator[Any]:
    """Lead a descriptor into a file, and yield a stream to where it led before.

    A stream that is not the descriptor's own, such as a test's or a notebook's, is yielded as it is.
    """
    try:
        before = os.dup(number)
    except OSError:  # closed
        yield stream
        return
    own = _leads_to(stream, number)
    with (
        tempfile.TemporaryFile() as file,
        os.fdopen(before, "w", encoding="utf-8", errors="replace") as through,
        told_on(before) if number == _STDERR else contextlib.nullcontext(),
    ):
        os.dup2(file.fileno(), number)
        try:
            yield through if own else stream
        finally:
            _leads_to(stream, number)
            through.flush()
            os.dup2(before, number)
            kept.append(_content(file))


def _leads_to(stream: Any, number: int) -> bool:
    """Whether a stream writes to a descriptor; what it holds back of that is written before the answer is given."""
    try:
        stream.flush()
        return bool(stream.fileno() == number)
    except (OSError, ValueError, AttributeError):  # closed, or no file at all
        return False


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", errors="replace")


@contextlib.contextmanager
def _loggers(kept: list[str]) -> Iterator[None]:
    """Give the libraries' loggers one handler for a while, in place of theirs: torch has one at every second level."""
    handler = _Log(kept)
    known = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _LOGGERS]
    loggers = [logging.getLogger(name) for name in dict.fromkeys((*_LOGGERS, *known))]
    before = [(logger.handlers[:], logger.propagate) for logger in loggers]
    for logger in loggers:
        top = logger.name in _LOGGERS
        logger.handlers[:], logger.propagate = [handler] if top else [], not top
    try:
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            # A library that was configured meanwhile keeps what it added.
            added = [one for one in logger.handlers if one is not handler]
            logger.handlers[:], logger.propagate = [*handlers, *added], propagate


@contextlib.contextmanager
def _warnings(kept: list[str]) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            kept.extend(f"{warning.category.__name__}: {warning.message}\n" for warning in seen)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    from transformers.utils import logging as chatter

    shown = chatter.is_progress_bar_enabled()
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            chatter.enable_progress_bar()


_LONGEST: Final = 300


def clipped(text: str, longest: int = _LONGEST) -> str:
    """The beginning of a text that somebody else wrote, however long that is."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def said(error: BaseException) -> str:
    """What an error of a library says, in one line: where the first is a heading, what stands below it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return clipped(lines[1].removeprefix("TypeError: ").removeprefix("ValueError: "))
    if not lines:
        return type(error).__name__
    plain = isinstance(error, ValueError | RuntimeError | OSError)
    return clipped(lines[0]) if plain else f"{clipped(lines[0])} ({type(error).__name__})"
