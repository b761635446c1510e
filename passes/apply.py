"""Apply a plan to a model: insert, annotate, verify against plan and target, in this order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from spq_graph.decisions.retarget import refuse_unsupported
from spq_graph.documents.plan import Plan
from spq_graph.passes.adapt.prepared import Prepared, prepared
from spq_graph.passes.annotate import Annotate
from spq_graph.passes.base.run import Pass, run
from spq_graph.passes.base.stock import Stock
from spq_graph.passes.canon.canonicalize import strip_exporter_noise
from spq_graph.passes.changes.prefix import PrependPrefix
from spq_graph.passes.changes.scale import ScaleChannels
from spq_graph.passes.check.outline import Outline, outline
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.check.target import VerifyTarget, refuse_foreign
from spq_graph.passes.forms.insert import InsertPrecisions
from spq_graph.passes.forms.int8_function import OLDEST_OPSET as INT8_OPSET
from spq_graph.passes.numbers.fp8 import OLDEST_OPSET as FP8_OPSET
from spq_graph.terms.form import Form
from spq_graph.terms.site import Role
from spq_graph.terms.targets import Profile


def apply_plan(
    source: Path | Prepared,
    plan: Plan,
    profile: Profile | None = None,
    *,
    measured: bool = False,
    stock: Stock | None = None,
) -> ir.Model:
    """The model in `source` with every site of the plan in its precision.

    Args:
        source: the ONNX file that the plan is for, or its graph where that was read already; it stays as it is.
        plan: what was decided.
        profile: what runs it; by default the plan's target. Given the target's emulation, the result is for measuring
            only, and not held against the target's rules.
        measured: for measuring only, whatever runs it: nothing of the result is held against the plan again.
        stock: what was made of weights for other plans for the same source; None for nothing.

    Raises:
        UsageError: the plan asks for what its target cannot run.
        GraphError: the plan does not fit the model, or the model does not fit the target.
        CheckError: the result is not what the plan says.
    """
    refuse_unsupported(plan)
    profile = profile or plan.recipe.profile
    delivered = profile == plan.recipe.profile
    model = _adapted(source, plan, delivered, stock)
    run(model, applying(plan, profile, outline(model) if delivered and not measured else None, stock))
    strip_exporter_noise(model)
    return model


def check_applied(model: ir.Model, source: Path | Prepared, plan: Plan) -> None:
    """Hold a graph, however it came here, against the plan and the source that it is said to be made of.

    Args:
        model: the graph, as its file has it.
        source: what it was made of, as `apply_plan` takes it.
        plan: what was decided.

    Raises:
        CheckError: naming what differs.
        UsageError, GraphError: as `apply_plan`.
    """
    refuse_unsupported(plan)
    run(model, checking(plan, outline(_adapted(source, plan, True))))


def _adapted(source: Path | Prepared, plan: Plan, delivered: bool, stock: Stock | None = None) -> ir.Model:
    """The source as the plan's passes find it: with its prefix and its factors for channels.

    All else is then held against that.
    """
    target = plan.recipe.profile
    whole = source if isinstance(source, Prepared) else prepared(source)
    if delivered:
        refuse_foreign(whole.graph, target)
    # Whatever the form of FP8: the type itself is of a newer opset.
    fp8 = FP8_OPSET if any(site.precision.is_fp8 for site in plan.sites) else 0
    int8 = INT8_OPSET if any(plan.in_form(form) for form in (Form.WITH_BRANCH, Form.BY_TOKEN)) else 0
    model = whole.adapted(target, max(fp8, int8))
    products = [site.site for site in plan.sites if site.role is not Role.EMBEDDING]
    run(model, [PrependPrefix(plan.prefix), ScaleChannels(list(plan.scales.values()), products, stock)])
    return model


def checking(plan: Plan, before: Outline) -> Sequence[Pass]:
    """The passes that change nothing and refuse what is not as it should be.

    Args:
        plan: what was decided.
        before: the graph as it was.
    """
    return VerifyPlan(plan, before), VerifyTarget(plan)


def applying(plan: Plan, profile: Profile, before: Outline | None, stock: Stock | None = None) -> Sequence[Pass]:
    """The passes that bring a plan into an adapted graph, in their order.

    Args:
        plan: what was decided.
        profile: what runs it.
        before: the graph as it was, to check against; None for a graph that is only measured.
        stock: what was made of weights for other graphs of the same source; None for nothing.
    """
    writing = (InsertPrecisions(plan, profile, stock), Annotate(plan))
    return writing if before is None else (*writing, *checking(plan, before))
