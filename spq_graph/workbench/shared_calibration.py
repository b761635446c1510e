"""A calibration that the workers of a cluster share.

A share is some of the batches that one process would run, in the same shapes: what ONNX Runtime computes of a batch
depends on nothing else, and what is made of several merges to the same bytes however they were shared out.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache

from spq_graph.documents.ranges import Ranges
from spq_graph.passes.files.read import digest_of
from spq_graph.passes.find.quantized import identify_floating
from spq_graph.runtime.measures.calibrate import NotFiniteOn, Observed, Seen
from spq_graph.runtime.sessions.cores import share_machine
from spq_graph.runtime.sessions.segmented import Progress
from spq_graph.runtime.text.sequences import Ids
from spq_graph.workbench.cluster import Cluster
from spq_graph.workbench.looked import read_graph
from spq_graph.workbench.observing import observed
from spq_graph.workbench.placed import Placed

# Tokens of a share at most. A worker that dies costs no more than that; smaller ones would spend their time on opening
# the segments of a large model.
SHARE_TOKENS = 8192
# Shares for each worker, where there is enough for that: the faster ones then do more of them.
SHARES_EACH = 3


@dataclass(frozen=True, slots=True)
class _Share:
    """Batches that a worker runs through a model, int64 [batch, length] each."""

    model: Placed
    batches: Sequence[Ids]


@dataclass(frozen=True, slots=True)
class SharedCalibration:
    """The calibration of a model, shared out.

    Attributes:
        cluster: whose workers run it.
        model: what they run.
    """

    cluster: Cluster
    model: Placed

    def seen(self, batches: Sequence[Ids], progress: Progress | None = None) -> Generator[Seen, None, None]:
        """What is seen on batches, int64 [batch, length], in their order, some at a time.

        Args:
            batches: as `Observed.batches` has them.
            progress: called with batches done and in all.

        Raises:
            NotFiniteOn: an activation is NaN or infinite.
            SpqError: as `Cluster.spread`; or another model lies at that path on a worker.
        """
        shared = list(_shared(batches, len(self.cluster.workers())))
        found = self.cluster.spread(_calibrate, [_Share(self.model, some) for some in shared])
        done = 0
        with closing(found):
            for some, seen in zip(shared, found, strict=True):
                if isinstance(seen, NotFiniteOn):
                    raise seen
                done += len(some)
                if progress is not None:
                    progress(done, len(batches))
                yield seen


def _shared(batches: Sequence[Ids], workers: int) -> Iterator[list[Ids]]:
    """Batches in shares, in their order: several for each worker, and none of more than `SHARE_TOKENS`."""
    tokens = sum(rows.size for rows in batches)
    most = min(SHARE_TOKENS, tokens // (SHARES_EACH * max(1, workers)))
    some: list[Ids] = []
    for rows in batches:
        if some and sum(other.size for other in some) + rows.size > most:
            yield some
            some = []
        some.append(rows)
    if some:
        yield some


def _calibrate(share: _Share) -> Seen | NotFiniteOn:
    """What a worker sees on its batches; what is not finite is no failure of the worker, so that nobody tries again."""
    from distributed import get_worker

    share_machine(get_worker().state.nthreads)
    model = _opened(share.model, get_worker().address)
    seen = Seen(Ranges(model.digest), {})
    try:
        for more in model.seen(share.batches):
            seen.merge(more)
    except NotFiniteOn as found:
        return found
    return seen


@lru_cache(maxsize=1)
def _opened(model: Placed, worker: str) -> Observed:
    """The model, read once in a process.

    Raises:
        SourceError: it cannot be read, or is another one.
    """
    model.refuse_other(digest_of(model.path), worker)
    read = read_graph(model.path)
    return observed(read, identify_floating(read.graph).sites, model.path, model.digest, model.memory)
