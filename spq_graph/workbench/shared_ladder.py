"""A ladder whose rows the workers of a cluster share: each builds and measures some, beside the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spq_graph.decisions.variants import LadderPlace, Variant, alike
from spq_graph.documents.report import Rung
from spq_graph.runtime.sessions.cores import share_machine
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.targets import CPU_PROVIDER
from spq_graph.workbench.built import Built
from spq_graph.workbench.cluster import Cluster
from spq_graph.workbench.ladder import measure_ladder
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.placed import Placed
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench

# Models of a share at least: beside them the source is run once more.
FEWEST = 2


@dataclass(frozen=True, slots=True)
class _Share:
    """Rows that a worker measures on a text."""

    model: Placed
    rows: Sequence[Variant]
    text: Sequences


@dataclass(frozen=True, slots=True)
class _Found:
    """What a worker measured, the source first, and what it has to say of rows that are left out."""

    rungs: list[Rung]
    remarks: list[str]


def measure_rows(
    bench: Workbench, rows: Sequence[Variant], text: Sequences, ready: Mapping[LadderPlace, Built]
) -> list[Rung]:
    """As `measure_ladder`, with its figures; rows are shared out where there is a cluster that can run them.

    What is built already is measured here: it is what is delivered.
    """
    cluster = bench.cluster
    if cluster is None or any(bench.measured_as(row.plan).provider != CPU_PROVIDER for row in rows):
        return measure_ladder(bench, rows, text, ready)
    here, there = list[Variant](), list[list[Variant]]()
    for same in alike(rows).values():
        if any(row.place in ready for row in same):
            here += same
        else:
            there.append(same)
    measured = measure_ladder(bench, here, text, ready) if here else []
    if there:
        measured += _elsewhere(cluster, bench, there, text)
    by_place = {(rung.id, rung.bits): rung for rung in measured}
    return [*measured[:1], *(by_place[row.place] for row in rows if row.place in by_place)]


def _elsewhere(cluster: Cluster, bench: Workbench, rows: Sequence[Sequence[Variant]], text: Sequences) -> list[Rung]:
    """What workers measure, each beside the source, which comes first; `rows` that decide the same stand together."""
    size = max(FEWEST, -(-len(rows) // len(cluster.workers() or [None])))
    shared = [rows[start : start + size] for start in range(0, len(rows), size)]
    shares = [_Share(bench.placed, [row for same in some for row in same], text) for some in shared]
    measured: list[Rung] = []
    done = 0
    with bench.steps.step("ladder", f"Measuring {len(rows)} models on {text.tokens} tokens{cluster.words}") as tick:
        for some, found in zip(shared, cluster.spread(_measure, shares), strict=True):
            for remark in found.remarks:
                bench.steps.remark(remark)
            measured += found.rungs
            done += len(some)
            tick(done, len(rows))
    return measured


def _measure(share: _Share) -> _Found:
    from distributed import get_worker

    worker, remarks = get_worker(), list[str]()
    share_machine(worker.state.nthreads)
    opening = Opening(share.model.path, memory=share.model.memory, allow_no_glu=True)
    with opening.open(Steps(remark=remarks.append)) as bench:
        share.model.refuse_other(bench.digest, worker.address)
        remarks.clear()  # where the command was given the model was opened as well
        return _Found(measure_ladder(bench, share.rows, share.text, {}), remarks)
