"""Timed steps: quiet by themselves, and told to whoever shows them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from spq_graph.documents.interrupts import check

Tick = Callable[[int, int], None]
"""Takes how much is done, and of how much."""
Watch = Callable[[str, int, int], None]
"""Takes what is being done, in words, how much of it is done, and of how much."""
Ended = Callable[[str, float | None], None]
"""Takes what was being done, in words, and the seconds that it took; None where it came to no end."""
Remark = Callable[[str], None]
"""Takes a sentence about what is done otherwise than asked."""
Heard = Callable[[str], None]
"""Takes what libraries printed, a text of one or more lines."""


def _unheard(*_: object) -> None:
    pass


@dataclass(slots=True)
class Steps:
    """The steps of one run, and who is told of them; by default nobody.

    Attributes:
        watch: is told of every step as it begins, with 0 of 0, and whenever more of it is done.
        remark: is told of what is left out, and what makes figures doubtful, and why.
        ended: is told of every step that is over.
        heard: is told what libraries printed while a model was loaded and exported. Where it is given, what C and Rust
            write to the process's descriptors 1 and 2 is held back as well.
        seconds: wall time by step, in order.
    """

    watch: Watch = _unheard
    remark: Remark = _unheard
    ended: Ended = _unheard
    heard: Heard | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, label: str | None = None) -> Iterator[Tick]:
        """Time a step and tell of it; the yielded function takes how much is done, and of how much."""
        start, label = time.perf_counter(), label or name

        def tick(done: int, total: int) -> None:
            check()
            self.watch(label, done, total)

        took = None
        tick(0, 0)
        try:
            yield tick
            took = self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
        finally:
            self.ended(label, took)
