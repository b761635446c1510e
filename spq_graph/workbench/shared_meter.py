"""Measurements of a decision that the workers of a cluster share: choices that wait for nothing but each other.

Each worker runs the source once, on the same tokens as one process would, and then measures some of the choices; what
ONNX Runtime computes of a batch depends on nothing else, so that figures are those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

from spq_graph.documents.changes import Prefix
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.cores import share_machine
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import NotFiniteError
from spq_graph.workbench.meter import SHARE_ALONE, Asked, Gauge, Meter, meter
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.placed import Placed
from spq_graph.workbench.workbench import Workbench

# Choices of a share at most: a worker that dies costs no more.
SHARE = 8


@dataclass(frozen=True, slots=True)
class Decision:
    """What choices are measured in, as `meter` takes it.

    Attributes:
        sequences: what is measured on.
        recipe: how much of that, and how candidates are built.
        ranges: of the activations.
        prefix: what candidates have in front of every sequence.
    """

    sequences: Sequences
    recipe: Recipe
    ranges: Ranges
    prefix: Prefix | None

    def meter(self, bench: Workbench, tick: Callable[[int], None]) -> Meter:
        """What measures in this process; as `meter`."""
        return meter(bench, self.sequences, self.recipe, self.ranges, tick, self.prefix)


@dataclass(frozen=True, slots=True)
class _World:
    """A decision, as workers are told of it.

    Attributes:
        name: of the decision, among those of all runs that a worker may have worked for.
        model: what it is about.
        tokens: how many it is measured on where the command was given.
    """

    name: str
    model: Placed
    decision: Decision
    tokens: int


@dataclass(frozen=True, slots=True)
class _Share:
    """Choices that a worker measures."""

    world: _World
    asked: Sequence[Asked]


@dataclass(slots=True)
class _Held:
    """What a worker keeps open between two shares of one decision."""

    name: str
    open: ExitStack
    meter: Meter


_held: dict[str, _Held] = {}  # by the worker's address: several may be threads of one process
_lock = Lock()


@contextmanager
def shared_meter(bench: Workbench, decision: Decision, tick: Callable[[int], None]) -> Iterator[Meter]:
    """What a decision is measured by; what is only put in order, by the workers of the source's cluster if it has one.

    What they open for it is closed at the end.

    Args:
        bench: the source.
        decision: what choices are measured in.
        tick: as of `meter`.
    """
    found, cluster = decision.meter(bench, tick), bench.cluster
    if cluster is None:
        yield found
        return
    name = f"{bench.work.name} {decision.recipe.bits}"
    world = _World(name, bench.placed, decision, found.alone.tokens)

    def together(asked: Sequence[Asked]) -> list[Score | NotFiniteError] | None:
        if not _worth(len(asked), len(cluster.workers())):
            return None
        shares = [_Share(world, asked[start : start + SHARE]) for start in range(0, len(asked), SHARE)]
        measured: list[Score | NotFiniteError] = []
        for some in cluster.spread(_measure, shares):
            if some is None:  # a worker that has not the room for as many tokens: figures would be others
                return None
            measured += some
            tick(len(some))
        return measured

    found.alone.together = together
    try:
        yield found
    finally:
        cluster.tell(_close_all)


def _worth(asked: int, workers: int) -> bool:
    """Whether that many choices take longer than the pass of the source that every worker needs first."""
    return asked * (workers - 1) > SHARE_ALONE * workers


def _measure(share: _Share) -> list[Score | NotFiniteError] | None:
    """Scores of choices, or why one has none; None where this worker measures on fewer tokens than it should."""
    from distributed import get_worker

    worker = get_worker()
    share_machine(worker.state.nthreads)
    gauge = _gauge(share.world, worker.address)
    if gauge.tokens != share.world.tokens:
        return None
    return [_score(gauge, asked) for asked in share.asked]


def _score(gauge: Gauge, asked: Asked) -> Score | NotFiniteError:
    try:
        return gauge.score(*asked)
    except NotFiniteError as error:  # no failure of the worker, so that nobody tries again
        return error


def _gauge(world: _World, address: str) -> Gauge:
    """What measures on this worker, made once for a decision."""
    with _lock:
        held = _held.get(address)
    if held is None or held.name != world.name:
        _close(address)
        with ExitStack() as stack:
            opening = Opening(world.model.path, memory=world.model.memory, allow_no_glu=True)
            bench = stack.enter_context(opening.open())
            world.model.refuse_other(bench.digest, address)
            made = world.decision.meter(bench, lambda _: None)
            held = _Held(world.name, stack.pop_all(), made)
        with _lock:
            _held[address] = held
    return held.meter.alone


def _close_all(dask_worker: Any) -> None:
    """Close what a worker holds, who is handed over by that name: no task runs, to ask for its own."""
    _close(dask_worker.address)


def _close(address: str) -> None:
    """Close what the worker at an address holds."""
    with _lock:
        held = _held.pop(address, None)
    if held is not None:
        held.open.close()
