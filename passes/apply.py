"""Apply a plan to a model: insert, annotate, verify against plan and target, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from spq_graph.decisions.retarget import refuse_unsupported
from spq_graph.documents.plan import Plan
from spq_graph.passes.adapt.prepared import Prepared, adapting, prepared
from spq_graph.passes.annotate import Annotate
from spq_graph.passes.base.run import Pass, run
from spq_graph.passes.canon.canonicalize import strip_exporter_noise
from spq_graph.passes.check.outline import Outline, outline
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.check.target import VerifyTarget, refuse_foreign
from spq_graph.passes.forms.insert import InsertPrecisions
from spq_graph.terms.targets import Profile


def apply_plan(source: Path | Prepared, plan: Plan, profile: Profile | None = None) -> ir.Model:
    """The model in `source` with every site of the plan in its precision.

    Args:
        source: the ONNX file that the plan is for, or its graph where that was read already; it stays as it is.
        plan: what was decided.
        profile: what runs it; by default the plan's target. Given the target's emulation, the result is for measuring
            only, and not held against the target's rules.

    Raises:
        UsageError: the plan asks for what its target cannot run.
        GraphError: the plan does not fit the model, or the model does not fit the target.
        CheckError: the result is not what the plan says.
    """
    refuse_unsupported(plan)
    target, profile = plan.recipe.profile, profile or plan.recipe.profile
    delivered = profile is target
    model = (source if isinstance(source, Prepared) else prepared(source)).copy()
    if delivered:
        refuse_foreign(model, target)
    # Whatever the form of FP8: the type itself is of a newer opset.
    run(model, adapting(target, fp8=any(site.precision.is_fp8 for site in plan.sites)))
    run(model, applying(plan, profile, outline(model) if delivered else None))
    strip_exporter_noise(model)
    return model


def applying(plan: Plan, profile: Profile, before: Outline | None) -> Sequence[Pass]:
    """The passes that bring a plan into an adapted graph, in their order.

    Args:
        plan: what was decided.
        profile: what runs it.
        before: the graph as it was, to check against; None for a graph that is only measured.
    """
    writing = (InsertPrecisions(plan, profile), Annotate(plan))
    return writing if before is None else (*writing, VerifyPlan(plan, before), VerifyTarget(plan))
