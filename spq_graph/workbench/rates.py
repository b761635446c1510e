"""What something takes, in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")
# Seconds: what is over sooner is tried again; and sampling behind so much of a text tells of sampling in its middle.
SHORT = 0.5


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds that something takes at all, and for each token."""

    fixed: float
    token: float

    def of(self, tokens: int) -> float:
        """Seconds for so many tokens."""
        return self.fixed + self.token * tokens

    def times(self, fixed: float, token: float) -> Rate:
        """Of something that takes so many times as long at all, and for each token."""
        return Rate(self.fixed * fixed, self.token * token)


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """What work gives, and the seconds that it took."""
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start
