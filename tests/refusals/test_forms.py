"""What a form refuses to write."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.passes.apply import apply_plan
from spq_graph.terms.precision import Precision
from tests.support.following import Told
from tests.support.graphs import Builder
from tests.support.inserting import activations, plan_for

follows = pytest.mark.follows


@follows("passes/forms/int8_operator.py:Int8Operator.insert")
def test_sums_that_32_bits_do_not_hold(refusal: Told, tmp_path: Path) -> None:
    path, depth = tmp_path / "model.onnx", 65_600
    builder = Builder()
    builder.op("MatMul", "x", builder.const(builder.random(depth, 2)), outputs=["y"], name="product")
    onnx.save(builder.model({"x": (1, ["n", depth])}, {"y": (1, ["n", 2])}), path)
    feeds = {"x": activations(2, depth)}
    with refusal:
        apply_plan(path, plan_for(path, feeds, Precision.W8A8_TOKEN))
    apply_plan(path, plan_for(path, feeds, Precision.W8A8_BLOCK))


@follows("passes/forms/insert.py:require_one_range")
def test_two_ranges_of_one_activation(refusal: Told, tmp_path: Path) -> None:
    path, builder = tmp_path / "model.onnx", Builder()
    both = [builder.op("MatMul", "x", builder.const(builder.random(32, 8))) for _ in range(2)]
    builder.op("Add", *both, outputs=["y"])
    onnx.save(builder.model({"x": (1, ["n", 32])}, {"y": (1, ["n", 8])}), path)
    plan = plan_for(path, {"x": activations(4, 32)}, Precision.INT8)
    plan.sites[1].range = (-1.0, 0.5)
    with refusal:
        apply_plan(path, plan)
    apply_plan(path, plan_for(path, {"x": activations(4, 32)}, Precision.INT8))


@follows("passes/forms/int8_operator.py:branch_constants")
def test_rows_of_a_branch_that_float16_does_not_hold(refusal: Told, tmp_path: Path) -> None:
    path, builder = tmp_path / "model.onnx", Builder()
    weight = builder.random(64, 8)
    weight[5, 3] = 1e5
    builder.op("MatMul", "x", builder.const(weight), outputs=["y"], name="product")
    onnx.save(builder.model({"x": (1, ["n", 64])}, {"y": (1, ["n", 8])}), path)
    x = activations(4, 64)
    x[:, 5] *= 100
    with refusal:
        apply_plan(path, plan_for(path, {"x": x}, Precision.W8A8_TOKEN, peeled=1))
    apply_plan(path, plan_for(path, {"x": x}, Precision.W8A8_TOKEN))  # without the remedy
