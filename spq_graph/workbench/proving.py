"""What a runtime did not run, accounted for by what the file holds, before what ran is held against the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from spq_graph.documents.plan import Plan
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.folded import constant_products, twins_of
from spq_graph.runtime.measures.asked import Stream
from spq_graph.runtime.proof.held import account, account_functions, check_executed, execute_on, unaccounted
from spq_graph.runtime.sessions.executed import CONSTANT, Executed
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import SourceError
from spq_graph.terms.logits import Logits
from spq_graph.terms.targets import CPU_PROVIDER
from spq_graph.workbench.streams import execute, execute_file

Then: TypeAlias = Callable[[Stream | None], None]
"""Takes what ran while it is open; None where that is not at hand."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What there is to run a file in.

    Attributes:
        stream: a session over it that is open already; None for none.
        memory: bytes that the weights in a session may take; None for the default of `pieces.split`.
        logits: which output holds them; None to go by names and shapes.
        then: what it is to serve for besides: a session more would take as much again.
    """

    stream: Stream | None = None
    memory: int | None = None
    logits: Logits | None = None
    then: Then | None = None


def run_on(plan: Plan, file: Path, ids: Ids, opened: Opened) -> Executed:
    """Run one short batch, int64 [batch, length], on a plan's target, where it is at hand, and list what ran.

    What cannot be run is called by the model that it was made of.

    Raises:
        SourceError: the target cannot load the file.
    """
    profile, stream, then = plan.recipe.profile, opened.stream, opened.then
    if profile.provider != CPU_PROVIDER:
        try:
            executed = execute_on(profile, file, ids, stream if isinstance(stream, Runner) else None)
        except SourceError as cause:
            raise SourceError(cause.what, where=plan.model.origin, remedy=cause.remedy) from cause
    elif stream is None:
        return execute_file(file, ids, opened.memory, opened.logits, then)
    else:
        executed = execute(stream, ids)
    if then is not None:
        then(stream)
    return executed


def check_ran(executed: Executed, plan: Plan, source: ir.Model, file: Path) -> None:
    """Check that every site ran as planned, or need not run: a constant, or the same as another that ran.

    Args:
        executed: what ran; why sites did not is noted in it.
        plan: what was decided.
        source: the graph that it was decided for: of its constants a runtime may run some all the same.
        file: what ran, which is read where a site is not among it.

    Raises:
        CheckError: naming those of which neither is true.
    """
    nodes = {site.node for site in plan.sites}
    if executed.absent is None:
        executed.folded.update(dict.fromkeys(sorted(nodes & constant_products(source)), CONSTANT))
    if missing := unaccounted(executed, plan):
        graph = load_graph(file)
        constant = constant_products(graph).intersection(missing)
        twins = twins_of(graph, [node for node in missing if node not in constant])
        account(executed, constant, twins)
        account_functions(executed, plan, twins)
    check_executed(executed, plan, plan.model.origin)
