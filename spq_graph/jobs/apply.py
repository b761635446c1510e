"""A plan on the file that it was made for: OUT without an evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spq_graph.decisions.retarget import refuse_unsupported, retarget
from spq_graph.documents import artifact
from spq_graph.documents.plan import Plan
from spq_graph.documents.plan_file import refuse_misfit, refuse_other
from spq_graph.documents.results import Applied
from spq_graph.documents.staging import staged
from spq_graph.terms.form import OWN, Form
from spq_graph.terms.targets import target_named
from spq_graph.workbench.carded import write_card
from spq_graph.workbench.companions import add_companions, check_companions
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.steps import Steps


def apply(
    model: Openable,
    out: str | Path,
    plan: Plan | str | Path,
    *,
    target: str | None = None,
    force: bool = False,
    steps: Steps | None = None,
) -> Applied:
    """Apply a plan to the ONNX file that it was made for, for its own target or another, and prove what runs.

    Args:
        model: the file that the plan was made for.
        out: the folder to write.
        plan: the plan, or its file.
        target: what to compile for; None for the plan's own.
        force: replace an earlier OUT.
        steps: times and shows what is done.

    Raises:
        UsageError: there is no such target, or the plan was made for another model.
        SpqError: as `quantize`.
    """
    opening, out = replace(Opening.of(model), allow_no_glu=True), Path(out)
    named = target_named(target) if target is not None else None
    plan = plan if isinstance(plan, Plan) else Plan.load(Path(plan))
    artifact.check_out(out, force=force, inputs=(Path(opening.source),))
    plan = retarget(plan, named) if named is not None else plan
    refuse_unsupported(plan)
    check_companions(opening.resolve())
    with opening.open(steps, targets=(plan.recipe.target,)) as bench, staged(out, force=force) as staging:
        refuse_other(plan.model, bench.digest, opening.name)
        refuse_misfit([entry.site for entry in plan.sites], bench.found.sites, opening.name, bench.found.tables)
        with bench.steps.step("apply", "Inserting and proving"):
            built = bench.build(plan, staging / artifact.MODEL)
            executed = bench.prove(built, plan)
        plan.save(staging / artifact.PLAN)
        write_card(staging, plan)
        add_companions(bench.source, staging)
    ran = {form: executed.operator_run(form, plan) for form in OWN}
    folded = {s.key: executed.folded[s.node] for s in plan.sites if s.node in executed.folded}
    return Applied(
        out,
        plan,
        absent=executed.absent,
        executed=executed.ops,
        providers=executed.providers,
        fp8=ran[Form.OPERATOR],
        folded=folded,
        by_token=ran[Form.BY_TOKEN],
        with_branch=ran[Form.WITH_BRANCH],
    )
