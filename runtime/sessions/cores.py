"""How many cores sessions take."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(slots=True)
class _Share:
    """Of the machine, this process's: so many cores at most, None for all that there are."""

    most: int | None = None


_share = _Share()


def cores() -> int:
    """Cores that this process may use."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return here if _share.most is None else min(here, _share.most)


def share_machine(most: int) -> None:
    """Take no more than so many cores from now on: a process that stands on its machine beside others of its kind."""
    _share.most = most


def threads_of(asked: int) -> int:
    """Threads of a session that is asked to have so many; 0, which takes all cores, where it may take them."""
    return asked if asked or _share.most is None else cores()
