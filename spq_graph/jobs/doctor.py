"""What is installed here, and what every precision really becomes, found out by running it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.examination import Examination, Probed, ProbeStatus
from spq_graph.documents.leftovers import temporary_folder
from spq_graph.documents.model_ref import ModelRef
from spq_graph.documents.plan import Plan, Reason, SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.search import Search
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.files.save import save_model
from spq_graph.runtime.proof import health
from spq_graph.runtime.proof.held import why_absent
from spq_graph.runtime.proof.holds import holds
from spq_graph.runtime.sessions.executed import Executed
from spq_graph.terms.errors import SpqError
from spq_graph.terms.form import OWN
from spq_graph.terms.kernels import EXACT_SUMS, INTEGER_KERNELS
from spq_graph.terms.precision import SMALLEST_FIRST, Precision
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import PROFILES, Profile
from spq_graph.workbench.environment import environment

# The probe: one product, large enough for every kernel and small enough to be done at once.
ROWS, DEPTH, COLUMNS = 4, 64, 64
PRECISIONS = tuple(p for p in SMALLEST_FIRST if p.row.probed)
OPSET = 21
SATURATES = (
    "integer products saturate here: on x86 without VNNI, ONNX Runtime and OpenVINO keep the sum of two u8 x s8 "
    f'products in 16 bits. spq-graph sets ONNX Runtime\'s session option {EXACT_SUMS} = "1", which keeps it exact: set '
    "it in your programs as well, or let `reduce_range = true` in a recipe make weights of 7 bits, whose sums fit; "
    "OpenVINO has no such option"
)


def doctor() -> Examination:
    """Find out what is installed here, and run a small product in every precision on every target."""
    absent = {target: why_absent(profile) for target, profile in PROFILES.items()}
    return Examination(
        versions=environment(),
        machine=health.machine(),
        library=health.library(),
        targets={
            target: {p.value: _probed(p, profile, absent[target]) for p in PRECISIONS}
            for target, profile in PROFILES.items()
        },
        absent=absent,
        warnings=_warnings(),
        holds={target: holds(profile) for target, profile in PROFILES.items()},
    )


def _probed(precision: Precision, profile: Profile, absent: str | None) -> Probed:
    """What a product in this precision becomes on a target, here and now."""
    if not profile.allows(precision):
        return Probed(ProbeStatus.UNSUPPORTED, why=profile.why_not(precision))
    form = profile.forms[precision]
    try:
        if absent is not None:
            _run(precision, profile, execute=False)
            return Probed(ProbeStatus.NOT_HERE, form=form)
        ran, _ = _run(precision, profile)
    except SpqError as cause:
        return Probed(ProbeStatus.ERROR, why=cause.what)
    kernel = OWN.get(form)
    if kernel is None:
        return Probed(ProbeStatus.RAN, ran.kernels.get("product"))
    if kernel in ran.ops:
        return Probed(ProbeStatus.RAN, kernel)
    return Probed(ProbeStatus.FUNCTION, next((op for op in ran.ops if op in INTEGER_KERNELS), None))


def _run(
    precision: Precision, profile: Profile, *, execute: bool = True, flat: bool = False
) -> tuple[Executed, np.ndarray[Any, Any]]:
    """Write the probe for a target, and run it there."""
    with temporary_folder() as folder:
        source, path = folder / "probe.onnx", folder / "applied.onnx"
        save_model(_probe(flat), source)
        save_model(apply_plan(source, _plan(precision, profile)), path)
        if not execute:
            return Executed(), np.empty(0)
        return health.kernels_of(profile, path, {"x": np.ones((ROWS, DEPTH), dtype=np.float32)})


def _warnings() -> list[str]:
    """What would make results on this machine differ from those elsewhere."""
    # All codes are the largest: two products are 64,770, more than 16 bits hold.
    _, result = _run(Precision.INT8, PROFILES["cpu"], flat=True)
    if np.allclose(result, DEPTH, rtol=0.02):
        return []
    return [SATURATES]


def _probe(flat: bool) -> ir.Model:
    weight = np.linspace(1 if flat else -1, 1, DEPTH * COLUMNS, dtype=np.float32).reshape(DEPTH, COLUMNS)
    x = ir.Value(name="x", shape=ir.Shape(["rows", DEPTH]), type=ir.TensorType(ir.DataType.FLOAT))
    constant = ir.Value(
        name="weight",
        const_value=ir.tensor(weight),
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(weight.shape),
    )
    node = ir.node("MatMul", [x, constant], name="product")
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    node.outputs[0].shape = ir.Shape(["rows", COLUMNS])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[constant], opset_imports={"": OPSET}, name="probe")
    return ir.Model(graph, ir_version=10)


def _plan(precision: Precision, profile: Profile) -> Plan:
    site = SitePlan(
        site=Site(key="product", node="product", role=Role.OTHER, layer=None, shape=(DEPTH, COLUMNS), input="x"),
        precision=precision,
        reason=Reason.OVERRIDE,
        range=(-1.0, 1.0),
    )
    return Plan(
        model=ModelRef(digest="", origin="probe"),
        recipe=Recipe(target=profile.name),
        search=Search(rule="none"),
        sites=[site],
        calibration=CalibrationRef(digest="", tokens=0, sequences=0),
        budget_met=True,
    )
