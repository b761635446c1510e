"""Run many candidates beside one graph, each from where it first differs, on batches that the graph has seen.

The values between the stages of the graph are kept as they were computed, bit for bit, in memory and, beyond that, in a
file without a name in the temporary folder. What a candidate says is then the same, to the bit, as if it had run from
its first node.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from spq_graph.runtime.sessions.cores import cores
from spq_graph.runtime.sessions.feeds import Array
from spq_graph.runtime.sessions.memory import give_back_memory
from spq_graph.runtime.sessions.passing import Passing
from spq_graph.runtime.sessions.segmented import Batch, Progress, SegmentedRunner
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.logits import Logits
from spq_graph.terms.segment import Segment, Staged

# Sessions that stay open, in bytes that they hold for themselves; and values between stages, in memory and in a file.
OPEN_BYTES = 128 << 20
HELD_BYTES = 256 << 20
FILE_BYTES = 4 << 30
# What is left free of a disk.
SPARE_DISK = 1 << 30
MOST_SIDE_BY_SIDE = 4
_ALIGNED = 64


class Held:
    """Arrays that are kept, in memory as far as they fit there, and in a file behind that; from any number of threads.

    Args:
        folder: where a file may be written; None for nowhere.
        memory: bytes that may be taken of it.
    """

    def __init__(self, folder: Path | None, memory: int = HELD_BYTES) -> None:
        self._memory = memory
        free = shutil.disk_usage(folder).free - SPARE_DISK if folder is not None else 0
        self._room = max(0, min(FILE_BYTES, free))
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._lock = Lock()  # batches side by side end up in one file

    def keep(self, array: Array) -> Array | None:
        """The same numbers, kept and read-only; None where there is no room."""
        with self._lock:
            if array.nbytes <= self._memory:
                self._memory -= array.nbytes
                return array
            if not array.nbytes <= self._room or not array.size:
                return None
            try:
                return self._written(np.ascontiguousarray(array))
            except OSError:  # the disk filled up meanwhile
                self._room = 0
                return None

    def _written(self, array: Array) -> Array:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            weakref.finalize(self, self._file.close)  # what is mapped of it stays so
        start = self._file.seek(-(-self._file.seek(0, 2) // _ALIGNED) * _ALIGNED)
        self._file.write(array.data)
        self._file.flush()
        self._room -= array.nbytes
        return np.memmap(self._file, array.dtype, "r", start, array.shape)


class Origin:
    """The graph that candidates are held against, with what it computed between its stages on every batch it ran.

    Args:
        staged: the graph.
        logits: which output holds them.
        folder: where values may be kept in a file; None for nowhere.
        open_bytes: what sessions that stay open may hold for themselves of their weights; None for a default. Those at
            the end stay first, since every candidate runs them.
    """

    def __init__(self, staged: Staged, logits: Logits, folder: Path | None, open_bytes: int | None = None) -> None:
        self.staged, self._logits = staged, logits
        self.sessions: dict[int, Any] = {}
        self.stay: set[int] = set()
        room = OPEN_BYTES if open_bytes is None else open_bytes
        for stage in reversed(staged.stages):
            room -= stage.segment.own
            if room < 0:
                break
            self.stay.add(id(stage.segment))
        self.known: dict[bytes, dict[str, Array]] = {}
        self.cuts = {name for stage in staged.stages for name in stage.before}
        self._held = Held(folder)
        self._stages = {(stage.before, stage.behind): stage for stage in staged.stages}

    def runner(self) -> StagedRunner:
        """The graph itself; values are kept of whatever it runs."""
        return StagedRunner(self, self.staged, 0, self._logits)

    def beside(self, candidate: Staged) -> StagedRunner:
        """A candidate, from its first stage that is not the graph's; those that are run in the graph's sessions."""
        found = [(stage, self._stages.get((stage.before, stage.behind))) for stage in candidate.stages]
        stages = [mine if mine is not None and stage.same_as(mine) else stage for stage, mine in found]
        alike = next((i for i, stage in enumerate(stages) if stage is candidate.stages[i]), len(stages) - 1)
        complete = [i for i in range(alike + 1) if self._knows(stages[i].before)]
        whole = candidate.with_stages(tuple(stages))
        return StagedRunner(self, whole, max(complete, default=0), self._logits)

    def _knows(self, names: Sequence[str]) -> bool:
        return all(name in values for values in self.known.values() for name in names)

    def keep(self, key: bytes, name: str, array: Array) -> None:
        """Keep a value of a batch, where there is room."""
        if (kept := self._held.keep(array)) is not None:
            self.known.setdefault(key, {})[name] = kept


def key_of(ids: Ids, mask: Ids) -> bytes:
    """What tells a batch from others."""
    return repr(ids.shape).encode() + ids.tobytes() + mask.tobytes()


class StagedRunner(SegmentedRunner):
    """A graph in stages, begun where it first differs from another that has run before; made by `Origin`.

    Several batches run at the same time where there are cores for them, and the session of the next stage is opened
    meanwhile.
    """

    def __init__(self, origin: Origin, staged: Staged, first: int, logits: Logits) -> None:
        super().__init__(staged.segmented(first), logits=logits)
        self._arena = False  # several dozen sessions would keep gigabytes, and are no faster for it
        self.first = first
        self._origin = origin
        self._records = staged is origin.staged
        self._before = staged.stages[first].before
        self._keys: dict[int, bytes] = {}
        self._next = {id(one): other for one, other in pairwise(self._model.segments)}
        self._opener: ThreadPoolExecutor | None = None
        self._ahead: dict[int, Future[Any]] = {}
        self._alike: dict[str, Array] = {}  # values of one batch, as long as they are the origin's

    def results(
        self, batches: Sequence[Batch], progress: Progress | None = None, columns: int | None = None
    ) -> Iterator[list[Array]]:
        """As `SegmentedRunner.results`, where sessions are opened one ahead."""
        # Where there are fewer batches than cores, those that are left over help with each.
        self._side_by_side = max(1, min(cores(), MOST_SIDE_BY_SIDE, len(batches)))
        with ThreadPoolExecutor(1) as self._opener:
            yield from super().results(batches, progress, columns)

    def stream(self, batches: Sequence[Batch], columns: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        """As `SegmentedRunner.stream`; those of a candidate only of batches that the origin has run."""
        self._keys.clear()
        return super().stream(batches, columns)

    def _known(self, ids: Ids, mask: Ids) -> dict[str, Array]:
        key = key_of(ids, mask)
        if self._records:
            self._keys[id(ids)] = key
            self._origin.known.setdefault(key, {})
            return {}
        self._alike = known = self._origin.known.get(key, {})
        return {name: known[name] for name in self._before}

    def _pass(self, session: Any, segment: Segment, later: set[str], batch: Passing) -> None:
        super()._pass(session, segment, later, batch)
        if self._records:
            key = self._keys[id(batch.ids)]
            for name in segment.gives:
                if name in self._origin.cuts and name in batch.values:
                    self._origin.keep(key, name, batch.values[name])

    def _session(self, segment: Segment, values: dict[str, Array]) -> Any:
        known, ahead = self._origin.sessions, self._ahead.pop(id(segment), None)
        session = known.get(id(segment))
        if session is None:
            session = ahead.result() if ahead is not None else super()._session(segment, values)
            if id(segment) in self._origin.stay:
                known[id(segment)] = session
        self._open_ahead(segment)
        return session

    def _open_ahead(self, segment: Segment) -> None:
        """Begin to open the session of the stage behind one, where it is known what that is handed."""
        later = self._next.get(id(segment))
        if later is None or self._opener is None or id(later) in self._origin.sessions:
            return
        if all(name in self._alike for name in later.reads):
            self._ahead[id(later)] = self._opener.submit(super()._session, later, self._alike)

    def _packs(self, segment: Segment) -> bool:
        # The same for a stage wherever it is run: packed products add up in another order.
        return segment.codes

    def _leave(self, segment: Segment) -> None:
        if id(segment) not in self._origin.stay and segment.size > HELD_BYTES // 4:
            give_back_memory()
