"""A Dask cluster whose workers share the work: reached, held against this machine, given shares, and left.

Nothing is asked of the cluster but that: which worker gets what, and what becomes of the work of one that dies, is
Dask's own. What is shared is written so that its results are those of one process, to the byte.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, TypeVar

from spq_graph import __version__
from spq_graph.terms.errors import ClusterError, UsageError
from spq_graph.workbench.introduced import DECIDES, Introduced, introduce
from spq_graph.workbench.steps import Remark

# Seconds that a scheduler has to answer, and a first worker to be there.
ANSWERS = 5.0
# Seconds that work waits while no worker is left: a nanny starts another within a few, a queue of jobs may take longer.
PATIENCE = 120.0
# A share that fails is given out so often again: a file system may be away for a moment, and for one machine only.
RETRIES = 2
_LOOKS = 1.0  # seconds between two looks at which workers there are

_S = TypeVar("_S")
_R = TypeVar("_R")


@contextmanager
def connected(address: str, remark: Remark) -> Iterator[Cluster]:
    """A cluster, which is left at the end; what it was given and has not done is then taken back.

    Args:
        address: of its scheduler, such as "tcp://host:8786".
        remark: is told of what makes figures doubtful.

    Raises:
        UsageError: distributed is not installed.
        ClusterError: there is no scheduler at that address.
    """
    if find_spec("distributed") is None:
        raise UsageError(
            "distributed, which speaks to a Dask cluster, is not installed",
            where=f"--dask {address}",
            remedy="pip install 'spq-graph[dask]'",
        )
    with _silent():
        client = _reached(address)
        try:
            yield Cluster(client, address, remark)
        finally:
            client.close(timeout=ANSWERS)


def _reached(address: str) -> Any:
    """A client of the scheduler at an address.

    Raises:
        ClusterError: there is none.
    """
    from distributed import Client

    try:
        with warnings.catch_warnings(action="ignore"):  # of other versions of Dask's own packages; ours are compared
            return Client(address, timeout=ANSWERS, set_as_default=False, name="spq-graph")
    except Exception as cause:  # it takes what another kind of server answers for sizes, and asks for that memory
        raise ClusterError(
            f"no Dask scheduler answers: {(str(cause).splitlines() or [type(cause).__name__])[0]}",
            where=f"--dask {address}",
            remedy="start one with `dask scheduler`; it prints the address that is meant, as tcp://HOST:8786",
        ) from cause


@contextmanager
def _silent() -> Iterator[None]:
    """A block in which Dask's loggers print nothing: of a lost connection, an error tells once."""
    importlib.import_module("distributed")  # where its loggers get their levels
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("distributed")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that is connected; made by `connected`.

    Attributes:
        client: of distributed.
        address: of its scheduler.
        remark: is told of what makes figures doubtful.
    """

    client: Any
    address: str
    remark: Remark

    def workers(self) -> dict[str, int]:
        """The threads of every worker that is there now, by its address.

        Raises:
            ClusterError: the scheduler is gone.
        """
        try:
            threads: dict[str, int] = self.client.nthreads()
        except Exception as cause:  # what it is depends on how far the client has got in giving up
            raise self._lost() from cause
        return threads

    @property
    def words(self) -> str:
        """Where the work is done, as the end of a step's name."""
        count = len(self.workers())
        return f", on {count} worker{'s' if count > 1 else ''}"

    def check(self, place: Path) -> None:
        """Refuse workers that cannot do the work, and tell of those whose numbers may differ.

        Args:
            place: the file or folder that they are to read the model from.

        Raises:
            ClusterError: there are none, one does not see that place, or other versions are installed there.
        """
        try:
            self.client.wait_for_workers(1, timeout=ANSWERS)
        except TimeoutError as cause:
            raise ClusterError(
                f"the scheduler has no workers, and none came within {ANSWERS:.0f} seconds",
                where=f"--dask {self.address}",
                remedy=f"start some: `dask worker {self.address}`",
            ) from cause
        here = introduce(place)
        said = self.client.run(introduce, place, on_error="return")
        for address, there in sorted(said.items()):
            _refuse_other(address, here, there)
            if not there.sees:
                raise ClusterError(
                    f"this worker does not see {place}, which it is to read the model from",
                    where=address,
                    remedy="Workers read the model from a path that all machines share: name an .onnx file there. Of a "
                    "folder, a GGUF or a Hub id `spq-graph export SOURCE -o DIR` makes one; or let the environment "
                    "variable TMPDIR name a shared folder.",
                )
        others = sorted(address for address, there in said.items() if there.instructions != here.instructions)
        if others:
            self.remark(
                f"the processor of {', '.join(others)} has other instructions than this one: numbers may differ in the "
                "last bits from those of one machine"
            )

    def spread(self, work: Callable[[_S], _R], shares: Sequence[_S]) -> Generator[_R, None, None]:
        """What `work` gives of every share, in their order.

        A worker has one share at a time, and its threads are the share's. What is under way when the caller stops is
        taken back.

        Args:
            work: a function of a module, which workers import.
            shares: what can be pickled.

        Raises:
            SpqError: what a share raises wherever it is tried.
            ClusterError: a share has killed every worker that had it, no worker is left, or the scheduler is gone.
        """
        waiting = deque(enumerate(shares))
        under_way: dict[Any, int] = {}
        over: SimpleQueue[Any] = SimpleQueue()
        found: dict[int, _R] = {}
        try:
            for number in range(len(shares)):
                while number not in found:
                    while waiting and len(under_way) < max(1, len(self.workers())):
                        index, share = waiting.popleft()
                        future = self.client.submit(work, share, pure=False, retries=RETRIES)
                        under_way[future] = index
                        future.add_done_callback(over.put)
                    future = self._next(over)
                    found[under_way.pop(future)] = self._result(future)
                yield found.pop(number)
        finally:
            with suppress(Exception):  # where there is no scheduler any more, nothing is under way
                self.client.cancel(list(under_way))

    def tell(self, what: Callable[..., object]) -> None:
        """Run a function on every worker, as its `dask_worker`; one that cannot is no matter."""
        with suppress(Exception):  # workers that are gone, or a scheduler that is: whoever needs them finds out
            self.client.run(what, on_error="ignore")

    def _next(self, over: SimpleQueue[Any]) -> Any:
        """The next share that is over."""
        alone_since: float | None = None
        while True:
            try:
                return over.get(timeout=_LOOKS)
            except Empty:
                if self.workers():
                    alone_since = None
                    continue
            if alone_since is None:
                alone_since = monotonic()
                self.remark(f"no worker is left: waiting {PATIENCE:.0f} seconds for another")
            elif monotonic() - alone_since > PATIENCE:
                raise ClusterError(
                    f"no worker is left, and none came within {PATIENCE:.0f} seconds",
                    where=f"--dask {self.address}",
                    remedy="start workers, and give the same command: `calibrate` goes on from where it was stopped",
                )

    def _result(self, future: Any) -> Any:
        from distributed import KilledWorker

        if future.status == "finished":
            return future.result()
        if future.status == "error":
            error = future.exception()
            if isinstance(error, KilledWorker):
                raise ClusterError(
                    f"every worker that was given one share of the work died over it, the last of them "
                    f"{error.last_worker.address}",
                    where=f"--dask {self.address}",
                    remedy="give them more memory, or lower --memory-limit: their logs say what ended them",
                )
            raise error.with_traceback(None)
        raise self._lost()

    def _lost(self) -> ClusterError:
        return ClusterError(
            "the connection to the scheduler was lost",
            where=f"--dask {self.address}",
            remedy="start it again, and give the same command: `calibrate` goes on from where it was stopped",
        )


def _refuse_other(address: str, here: Introduced, there: Introduced | BaseException) -> None:
    """Refuse a worker without this version of spq-graph, or with another of what numbers depend on.

    Raises:
        ClusterError: naming it.
    """
    if isinstance(there, BaseException):
        raise ClusterError(
            f"this worker cannot import spq-graph {__version__} ({type(there).__name__}: {there})",
            where=address,
            remedy=f"pip install 'spq-graph[cpu,dask]=={__version__}' there, and start it again",
        )
    for name in DECIDES:
        if there.versions.get(name) != here.versions.get(name):
            raise ClusterError(
                f"{name} {there.versions.get(name, 'is not installed')} on this worker, and "
                f"{here.versions.get(name, 'none')} here",
                where=address,
                remedy=f"install the same there, and start it again: pip install '{name}=={here.versions.get(name)}'",
            )
