"""Time is linear in nodes: a graph of twice the size takes twice the calls, counted, so that no clock is asked."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.plan import ModelRef, Plan, Reason, SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.search import Search
from spq_graph.passes.adapt.lift import LiftOpset
from spq_graph.passes.annotate import Annotate
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.check.outline import outline
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.files.save import save_model
from spq_graph.passes.find.quantized import identify_floating
from spq_graph.passes.forms.insert import InsertPrecisions
from spq_graph.passes.observe import Observe
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from tests.support.decoder_graphs import Decoder, decoder

PRECISIONS = (Precision.INT8, Precision.W8A8_BLOCK, Precision.FP8_E4M3, Precision.INT6_IN_8, Precision.FP16)


def calls(work: Callable[[], object]) -> int:
    """How many function calls some work takes."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def everything(path: Path) -> None:
    """Read, find, observe, and apply a plan with every precision."""
    model = load_graph(path)
    Canonicalize()(model)
    found = identify_floating(model)
    observed = load_graph(path)
    Canonicalize()(observed)
    Observe([site.input for site in found.sites])(observed)
    plan = planned(found.sites)
    LiftOpset()(model)
    before = outline(model)
    for step in (InsertPrecisions(plan, plan.recipe.profile), Annotate(plan), VerifyPlan(plan, before)):
        step(model)
    save_model(model, path.with_suffix(".out.onnx"))


def planned(sites: list[Site]) -> Plan:
    chosen = [
        SitePlan(
            site=s,
            reason=Reason.DEFAULT,
            precision=Precision.FP32 if s.role is Role.LM_HEAD else PRECISIONS[i % len(PRECISIONS)],
            range=(-1.0, 1.0),
        )
        for i, s in enumerate(sites)
    ]
    return Plan(
        model=ModelRef(digest="sha256:none", origin="none"),
        recipe=Recipe(),
        search=Search(rule="none"),
        sites=chosen,
        calibration=CalibrationRef(digest="none", tokens=1, sequences=1),
        budget_met=True,
    )


def layers(path: Path, size: int) -> None:
    onnx.save(decoder(Decoder(layers=size, kv_heads=1), opset=18), path)


def one_name(path: Path, size: int) -> None:
    """Every node has the same name."""
    save(path, [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"], name="same") for i in range(80 * size)])


def chain(path: Path, size: int) -> None:
    """A weight behind a long chain, of which every link is read by a product."""
    links = 80 * size
    nodes = [helper.make_node("Identity", [f"w{i}"], [f"w{i + 1}"]) for i in range(links)]
    save(path, nodes + [helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(links)])


def fan(path: Path, size: int) -> None:
    """One value that every node reads."""
    nodes = [helper.make_node("Sigmoid", ["v0"], ["s"])]
    nodes += [helper.make_node("Mul", [f"v{i}", "s"], [f"v{i + 1}"]) for i in range(80 * size)]
    save(path, nodes)


def save(path: Path, nodes: list[onnx.NodeProto]) -> None:
    """With x first, y last and a weight."""
    renamed = {nodes[-1].output[0]: "y", "v0": "x"}
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w0")
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]), ir_version=10), path)


def read(path: Path) -> None:
    model = load_graph(path)
    Canonicalize()(model)
    identify_floating(model)


@pytest.mark.parametrize(
    ("write", "work"),
    [(layers, everything), (one_name, read), (chain, read), (fan, read)],
    ids=lambda thing: thing.__name__,
)
def test_calls(tmp_path: Path, write: Callable[[Path, int], None], work: Callable[[Path], None]) -> None:
    counts = []
    for size in (1, 1, 2, 4):  # the first run pays for what is made once
        write(tmp_path / "model.onnx", size)
        counts.append(calls(lambda: work(tmp_path / "model.onnx")))
    _, small, middle, large = counts
    assert large - middle <= 2.1 * (middle - small)
