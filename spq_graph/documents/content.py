"""What a file holds that somebody named, whatever kind of file it is."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from spq_graph.terms.errors import SourceError

_MOST = 1 << 28  # bytes of what has no size of its own
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def refuse_special(path: Path) -> None:
    """Refuse what is there and neither a file nor a folder, where it is read more than once, or by a library.

    Reading a pipe waits until somebody writes, and gives what it holds once; a device may never end.

    Raises:
        SourceError: naming what it is.
    """
    mode = path.stat().st_mode if path.exists() else stat.S_IFREG
    if (kind := next((name for is_kind, name in _KINDS if is_kind(mode)), None)) is not None:
        raise SourceError(
            f"this is {kind}, not a file", where=str(path), remedy="write what it gives into a file, and name that"
        )


def content_of(path: Path) -> bytes:
    """Read a file once, from begin to end, so that what a shell gives in place of one, as `<(zcat FILE)`, is taken too.

    Raises:
        OSError: it cannot be read; it is a pipe with a name, on which reading may wait for ever; or it is no file, and
            does not end within 256 MiB.
    """
    mode = path.stat().st_mode
    if stat.S_ISFIFO(mode) and not os.path.realpath(path).startswith("/proc/"):
        raise OSError(errno.ESPIPE, "it is a pipe, on which reading may wait for ever", str(path))
    with path.open("rb") as stream:
        if stat.S_ISREG(mode):
            return stream.read()
        content = stream.read(_MOST + 1)
    if len(content) > _MOST:
        raise OSError(errno.EFBIG, "it is no file, and does not end within 256 MiB", str(path))
    return content
