"""An OUT folder against the plan in it and the model that it was made of: what a file says of itself proves nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spq_graph.documents import artifact
from spq_graph.documents.plan import Plan
from spq_graph.documents.plan_file import refuse_misfit, refuse_other
from spq_graph.documents.recipe import load_recipe
from spq_graph.documents.results import Verified
from spq_graph.passes.apply import check_applied
from spq_graph.passes.base.marks import PREFIX
from spq_graph.passes.files.read import load_graph
from spq_graph.terms.errors import CheckError, UsageError
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.steps import Steps

_REMEDY = "make it again with `spq-graph apply`, and do not run this file"


def verify(out: str | Path, model: Openable, *, steps: Steps | None = None) -> Verified:
    """Hold a folder that somebody hands over against the model that it is said to be made of.

    The same checks as when it was written, on what lies on the disk: every site has the form, the codes and the scales
    that the plan and the source's weight ask for, every other constant, node, input and output is the source's, and
    the target takes all of it. The plan itself is taken as it is: whether its decisions are good is what `eval` says.

    Args:
        out: the folder, with model.onnx and plan.json.
        model: what it was made of.
        steps: times and shows what is done.

    Raises:
        UsageError: the folder is no artifact, or its plan is of another model.
        SourceError, GraphError: one of the two models cannot be read.
        CheckError: naming what differs, be it the recipe beside the plan.
    """
    out, opening = Path(out), replace(Opening.of(model), allow_no_glu=True)
    for name in (artifact.PLAN, artifact.MODEL):
        if not (out / name).is_file():
            raise UsageError(
                f"there is no {name}", where=str(out), remedy="name a folder that `quantize` or `apply` wrote"
            )
    plan, graph = Plan.load(out / artifact.PLAN), load_graph(out / artifact.MODEL)
    noted = graph.metadata_props.get(f"{PREFIX}plan")
    if noted != plan.digest:
        raise CheckError(
            f"the graph was made with another plan than the one beside it ({noted or 'it names none'})",
            where=str(out),
            remedy=_REMEDY,
        )
    if (out / artifact.RECIPE).is_file() and load_recipe(out / artifact.RECIPE) != plan.recipe:
        raise CheckError(
            f"{artifact.RECIPE} is not the recipe of the plan beside it",
            where=str(out),
            remedy=f"remove it, or write the plan's again: `spq-graph apply` with {artifact.PLAN} does",
        )
    with opening.open(steps) as bench:
        refuse_other(plan.model, bench.digest, opening.name)
        refuse_misfit([entry.site for entry in plan.sites], bench.found.sites, opening.name, bench.found.tables)
        with bench.steps.step("verify", "Holding every site and constant against the source"):
            try:
                check_applied(graph, bench.prepared, plan)
            except CheckError as error:
                raise CheckError(error.what, where=str(out / artifact.MODEL), remedy=_REMEDY) from error
    held = {"sites": len(plan.sites), "constants": len(graph.graph.initializers), "nodes": graph.graph.num_nodes()}
    return Verified(out, opening.name, plan.recipe.target, plan.digest, **held)
