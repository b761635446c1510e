"""What a runtime did not run, accounted for by what the file holds, before what ran is held against the plan."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from spq_graph.documents.plan import Plan
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.folded import constant_products, twins_of
from spq_graph.runtime.proof.held import account, account_functions, check_executed, execute_on, unaccounted
from spq_graph.runtime.sessions.executed import CONSTANT, Executed
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import SourceError


def run_on(plan: Plan, file: Path, ids: Ids, runner: Runner | None) -> Executed:
    """As `execute_on`, on a plan's target; what cannot be run is called by the model that it was made of.

    Raises:
        SourceError: the target cannot load the file.
    """
    try:
        return execute_on(plan.recipe.profile, file, ids, runner)
    except SourceError as cause:
        raise SourceError(cause.what, where=plan.model.origin, remedy=cause.remedy) from cause


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
