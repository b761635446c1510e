"""One plan on every target that can be executed here, against one reference of what the plan means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from spq_graph.documents.plan import Plan
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.files.save import save_model
from spq_graph.runtime.sessions.openvino import OpenVinoSession, is_here
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import Target
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.fake_quant import fake_quant_logits
from tests.support.graphs import Array, Glu
from tests.support.inserting import applied, plan_for, run

SHAPE = Decoder(glu=Glu(width=32, inner=64), heads=4, kv_heads=4)
FEEDS = token_feeds(batch=2, length=7)
# Relative L2 of the logits, against the 3e-2 to 1.4e-1 that quantizing costs here. Most are equal to 3e-7; the rest is
# codes that another order of float32 sums moves to their neighbour.
TOLERANCE = 2e-3


def on_onnxruntime(path: Path) -> Array:
    return run(path, FEEDS, ["logits"])[0]


def on_reference(path: Path) -> Array:
    return np.asarray(ReferenceEvaluator(onnx.load(path)).run(["logits"], FEEDS)[0])


def on_openvino(path: Path) -> Array:
    if not is_here():
        pytest.skip("needs openvino")
    return OpenVinoSession(path).run(["logits"], FEEDS)[0]


def difference(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def planned(path: Path, target: Target, down: Precision, rest: Precision = Precision.INT8) -> Plan:
    def choose(site: Site) -> Precision:
        if site.role is Role.LM_HEAD:
            return Precision.FP32
        return down if site.role in (Role.GLU_DOWN, Role.ATTN_O) else rest

    return exact(plan_for(path, FEEDS, choose, target=target))


def exact(plan: Plan) -> Plan:
    """With weights of 7 bits for OpenVINO, which keeps no other sums exact on x86 without VNNI."""
    if plan.recipe.target != "openvino":
        return plan
    return plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"reduce_range": True})})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("targets") / "model.onnx"
    onnx.save(decoder(SHAPE, naming="dynamo"), path)
    return path


CASES: list[tuple[Target, Precision, Callable[[Path], Array]]] = [
    ("cpu", Precision.FP8_E4M3, on_onnxruntime),
    ("cpu", Precision.FP8_E5M2, on_onnxruntime),
    ("cpu", Precision.W8A8_BLOCK, on_onnxruntime),
    ("cpu", Precision.W8A16, on_onnxruntime),
    ("cpu", Precision.INT6_IN_8, on_onnxruntime),
    # CUDA's form is made of operators that the CPU has too; only bfloat16 is not.
    ("cuda", Precision.INT8, on_onnxruntime),
    ("cuda", Precision.FP8_E4M3, on_onnxruntime),
    ("cuda", Precision.FP16, on_reference),
    ("cuda", Precision.BF16, on_reference),
    ("cuda", Precision.INT6_IN_8, on_reference),
    ("tensorrt", Precision.INT8, on_onnxruntime),
    ("tensorrt", Precision.FP8_E4M3, on_reference),
    ("tensorrt", Precision.FP16, on_reference),
    ("openvino", Precision.INT8, on_openvino),
    ("openvino", Precision.INT6_IN_8, on_openvino),
    ("openvino", Precision.FP16, on_openvino),
    ("openvino", Precision.W8A16, on_openvino),
    ("openvino", Precision.W8FP8A16, on_openvino),
    ("portable", Precision.FP8_E4M3, on_onnxruntime),
    ("portable", Precision.FP8_E5M2, on_reference),
    ("portable", Precision.FP16, on_reference),
]


@pytest.mark.parametrize(("target", "down", "execute"), CASES)
def test_logits(model: Path, target: Target, down: Precision, execute: Callable[[Path], Array]) -> None:
    plan = planned(model, target, down)
    wanted = fake_quant_logits(model, plan, FEEDS)
    found = execute(applied(model, plan))
    # OpenVINO rounds the activations of weights alone where the processor has VNNI, and leaves them elsewhere.
    left = [plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"target": "portable"})})]
    ways = left if target == "openvino" and down is Precision.W8A16 else []
    nearest = min(difference(found, fake_quant_logits(model, one, FEEDS)) for one in (plan, *ways))
    assert nearest < TOLERANCE
    assert difference(on_onnxruntime(model), wanted) > 10 * TOLERANCE  # so that the tolerance says something


@pytest.mark.parametrize(
    ("target", "bits", "execute"),
    [
        ("cpu", Precision.INT8, on_onnxruntime),
        ("cpu", Precision.INT6_IN_8, on_onnxruntime),
        ("cpu", Precision.W8A8_TOKEN, on_onnxruntime),
        ("cpu", Precision.W8A8_TOKEN, on_reference),
        ("cuda", Precision.INT8, on_onnxruntime),
        ("tensorrt", Precision.INT8, on_onnxruntime),
        ("tensorrt", Precision.INT6_IN_8, on_reference),
        ("openvino", Precision.INT8, on_openvino),
        ("openvino", Precision.INT6_IN_8, on_openvino),
        ("portable", Precision.INT8, on_reference),
    ],
)
def test_outlier_branches(model: Path, target: Target, bits: Precision, execute: Callable[[Path], Array]) -> None:
    def choose(site: Site) -> Precision:
        return Precision.FP32 if site.role is Role.LM_HEAD else bits

    plan = exact(plan_for(model, FEEDS, choose, target=target, peeled=3))
    wanted = fake_quant_logits(model, plan, FEEDS)
    assert difference(execute(applied(model, plan)), wanted) < TOLERANCE
    without = fake_quant_logits(model, plan.with_treatments(()), FEEDS)
    assert difference(without, wanted) > 10 * TOLERANCE  # so that the branches say something


@pytest.mark.parametrize(
    ("target", "down"),
    [
        ("cuda", Precision.BF16),
        ("cuda", Precision.FP16),
        ("tensorrt", Precision.FP8_E4M3),
        ("tensorrt", Precision.INT6_IN_8),
        ("openvino", Precision.W8FP8A16),
    ],
)
def test_what_stands_in_on_the_cpu_has_the_same_numbers(model: Path, target: Target, down: Precision) -> None:
    plan = planned(model, target, down)
    path = model.with_name("emulated.onnx")
    save_model(apply_plan(model, plan, plan.recipe.profile.emulation), path)
    assert difference(on_onnxruntime(path), fake_quant_logits(model, plan, FEEDS)) < TOLERANCE


def test_reduce_range_takes_a_bit_from_weights_only(model: Path) -> None:
    plan = planned(model, "cpu", Precision.INT8)
    narrow = plan.with_precisions(lambda s: s.precision, reduce_range=True)
    made = applied(model, narrow)
    codes = [numpy_helper.to_array(t) for t in onnx.load(made).graph.initializer if t.name.endswith(".codes")]
    assert max(int(np.abs(array.astype(int)).max()) for array in codes) == 63
    assert difference(on_onnxruntime(made), fake_quant_logits(model, narrow, FEEDS)) < TOLERANCE
