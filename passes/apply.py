"""Apply a plan to a model: insert, annotate, verify against plan and target, in this order."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from spq_graph.errors import SpqError
from spq_graph.passes.annotate import Annotate
from spq_graph.passes.forms.insert import InsertPrecisions
from spq_graph.passes.graph import strip_exporter_noise
from spq_graph.passes.operator import PANELS_TYPE
from spq_graph.passes.outline import Outline, outline
from spq_graph.passes.prepared import Pass, Prepared, adapting, prepared, run
from spq_graph.passes.rules import VerifyTarget, refuse_foreign
from spq_graph.passes.verify import VerifyPlan
from spq_graph.plan import Plan
from spq_graph.retarget import refuse_unsupported
from spq_graph.targets import Profile

DATA_SUFFIX = ".data"
IN_FLIGHT_BYTES = 128 << 20


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


def save_model(model: ir.Model, path: Path) -> int:
    """Write a model with its weights beside it, few tensors in memory at a time, and return the bytes of both files.

    Raises:
        CheckError: what was made of a weight does not stand for it.
        OSError: the disk is full, or the folder cannot be written.
    """
    data = path.name + DATA_SUFFIX
    _panels_first(model.graph)
    try:
        ir.save(
            model,
            path,
            external_data=data,
            size_threshold_bytes=1024,
            max_workers=os.cpu_count(),
            max_in_flight_bytes=IN_FLIGHT_BYTES,
        )
    except Exception as error:  # the writer wraps whatever a weight raised in errors of its own
        first = _first_of(error)
        if first is error:
            raise
        raise first from None
    beside = path.with_name(data)
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def _first_of(error: BaseException) -> BaseException:
    """What began a chain of errors, where that is one of ours or the system's; otherwise the error itself."""
    first = error
    while (before := first.__cause__ or first.__context__) is not None:
        first = before
    return first if isinstance(first, SpqError | OSError) else error


def _panels_first(graph: ir.Graph) -> None:
    """Let FP8 weights start at multiples of 64 bytes, a cache line, in external data.

    Tensors are packed in this order without gaps, and panels are the only ones whose sizes are all multiples of 64.
    """
    values = list(graph.initializers.values())
    if any(value.dtype is PANELS_TYPE for value in values):
        graph.initializers.clear()
        for value in sorted(values, key=lambda value: value.dtype is not PANELS_TYPE):
            graph.initializers.add(value)
