"""Plans with factors for channels: what is written computes what they mean, with branches and without, everywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.documents.changes import Scale
from spq_graph.documents.plan import Plan
from spq_graph.passes.apply import apply_plan, check_applied
from spq_graph.passes.base.run import run as run_passes
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.changes.scale import ScaleChannels
from spq_graph.passes.files.read import load_graph
from spq_graph.terms.absorber import gathered, spread
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES, Target
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.fake_quant import fake_quant_logits
from tests.support.graphs import Glu
from tests.support.inserting import applied, plan_for, run

FEEDS = token_feeds(batch=2, length=7)
TOLERANCE = 2e-3  # of the logits' L2, as for every other plan: codes move to their neighbours


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A decoder whose activations have channels of very different sizes, and weights that make up for it."""
    path = tmp_path / "model.onnx"
    shape = Decoder(glu=Glu(width=32, inner=64), heads=4, kv_heads=2, qkv_bias=True)
    onnx.save(onnx.shape_inference.infer_shapes(decoder(shape, naming="dynamo"), data_prop=True), path)
    even = planned(path)
    draw = np.random.default_rng(0)
    uneven = [scale.model_copy(update={"exponents": drawn(draw, scale)}) for scale in even.scales.values()]
    graph = load_graph(path)
    run_passes(graph, [Canonicalize(), ScaleChannels(uneven, [s.site for s in even.sites])])
    onnx.save(ir.to_proto(graph), tmp_path / "uneven.onnx")
    return tmp_path / "uneven.onnx"


def drawn(draw: np.random.Generator, scale: Scale) -> tuple[int, ...]:
    """Exponents at random, as many times each as heads of the query share them."""
    once = gathered(draw.integers(-4, 5, len(scale.exponents)), scale.heads)
    return tuple(spread(once, scale.heads).tolist())


def planned(model: Path, target: Target = "portable", peeled: int = 0) -> Plan:
    return plan_for(
        model,
        FEEDS,
        lambda s: Precision.FP32 if s.role.left_alone else Precision.INT8,
        peeled=peeled,
        smoothed=True,
        target=target,
        activations="symmetric" if PROFILES[target].signed else "asymmetric",
    )


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("peeled", [0, 2])
@pytest.mark.parametrize("target", ["portable", "cpu"])
def test_it_computes_what_the_plan_means(model: Path, target: Target, peeled: int) -> None:
    plan = planned(model, target, peeled)
    assert len(plan.scales) == 9  # two norms, an attention and a GLU in each of two layers, and the last norm
    found = run(applied(model, plan), FEEDS, ["logits"])[0]
    assert distance(found, fake_quant_logits(model, plan, FEEDS)) < TOLERANCE


def test_alike_channels_lose_less(model: Path) -> None:
    wanted, plan = run(model, FEEDS, ["logits"])[0], planned(model)
    smooth = run(applied(model, plan), FEEDS, ["logits"])[0]
    rough = run(applied(model, plan.with_treatments([]), "rough.onnx"), FEEDS, ["logits"])[0]
    assert distance(smooth, wanted) < 0.5 * distance(rough, wanted)


def test_in_floating_point_nothing_changes_at_all(model: Path) -> None:
    plan = plan_for(model, FEEDS, Precision.FP32, smoothed=True)
    made, plain = applied(model, plan), applied(model, plan.with_treatments([]))
    assert run(made, FEEDS, ["logits"])[0].tobytes() == run(plain, FEEDS, ["logits"])[0].tobytes()


@pytest.mark.parametrize("target", PROFILES)
def test_every_target_has_it_and_it_is_verified(model: Path, target: Target) -> None:
    plan = planned(model, target, peeled=1)
    made = apply_plan(model, plan)
    check_applied(made, model, plan)
    assert Plan.model_validate_json(plan.to_json()) == plan


def test_a_norm_that_is_not_the_scaled_source_is_refused(model: Path) -> None:
    plan = planned(model)
    scale = next(iter(plan.scales.values()))
    for factor in (2.0, 0.5):
        made = load_graph(applied(model, plan))
        value = made.graph.initializers[scale.tensor]
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=scale.tensor)
        with pytest.raises(CheckError, match="does not hold what the source does"):
            check_applied(made, model, plan)


def test_factors_that_are_not_those_of_the_file_are_refused(model: Path) -> None:
    plan = planned(model)
    made = applied(model, plan)
    told = json.loads(plan.to_json())
    change = told["treatments"][0]["changes"][0]
    change["exponents"][3] += 1
    with pytest.raises(CheckError, match="the graph is not what the plan says"):
        check_applied(load_graph(made), model, Plan.model_validate(told))


def test_without_its_treatments_the_norms_are_the_sources_bytes(model: Path) -> None:
    plan = planned(model)
    made = apply_plan(model, plan.with_treatments([]))
    source = load_graph(model)
    for scale in plan.scales.values():
        held, was = (g.graph.initializers.get(scale.tensor) for g in (made, source))
        if held is None or was is None or held.const_value is None or was.const_value is None:
            continue  # an up projection's weight, which became codes
        assert held.const_value.tobytes() == was.const_value.tobytes()
