"""How much memory there is, how much this process takes, in bytes, and how to give back what is free.

Decided against psutil where the standard library tells it, which is everywhere but on Windows: psutil has no peak of a
process on Linux and macOS, so that `resource` would stay, and both others are a line each.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import suppress
from pathlib import Path


def installed() -> int:
    """Of the machine."""
    if sys.platform == "win32":
        import psutil

        return psutil.virtual_memory().total
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident() -> int:
    """Of this process now; its peak where the system does not tell the present."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().rss
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return peak()


def peak() -> int:
    """Of this process, the most that it has taken."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def give_back_memory() -> None:
    """Let the C library return what is free to the system, where it is one that would keep it (glibc)."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None) is not None:
        trim(0)


def let_go() -> None:
    """Give back what nobody holds: sessions are held by what refers to itself, and free memory by the C library."""
    gc.collect()
    give_back_memory()
