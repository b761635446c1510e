"""Insertion into graphs with odd names, shared weights or broken numbers, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from spq_graph.passes.apply import apply_plan
from spq_graph.terms.errors import GraphError
from spq_graph.terms.precision import Precision
from tests.support.graphs import ACTIVATIONS, LINEAR_FORMS, PACKINGS, Builder, Glu, glu_model
from tests.support.inserting import activations, applied, kernels, plan_for, run

FLOAT = onnx.TensorProto.FLOAT


class TestNames:
    def test_that_collide_with_ours(self, tmp_path: Path) -> None:
        model = glu_model(Glu(bias=True), naming="torchscript")
        down = next(n for n in model.graph.node if "down_proj" in n.name and n.op_type == "MatMul")
        ours = [f"{down.name}.weight.int6_in_8.{part}" for part in ("codes", "scale", "zero_point")]
        ours += [f"{down.input[0]}.int6_in_8.{part}" for part in ("low", "high", "scale", "zero_point")]
        ours += [f"{down.input[0]}.int6_in_8.QuantizeLinear.out", f"{down.name}.weight.int6_in_8.DequantizeLinear.out"]
        total = "x"
        for name in ours:
            model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.float32), name))
            model.graph.node.insert(0, onnx.helper.make_node("Add", [total, name], [f"{name}.sum"]))
            total = f"{name}.sum"
        model.graph.node.append(onnx.helper.make_node("Sub", [total, "x"], ["unused"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info("unused", FLOAT, ["tokens", 8]))
        path, plain = tmp_path / "model.onnx", tmp_path / "plain.onnx"
        path.write_bytes(model.SerializeToString())
        onnx.save(glu_model(Glu(bias=True), naming="torchscript"), plain)
        feeds = {"x": activations(9, 8)}
        results = [
            run(applied(p, plan_for(p, feeds, Precision.INT6_IN_8), f"{p.stem}.made.onnx"), feeds)[0]
            for p in (path, plain)
        ]
        np.testing.assert_array_equal(*results)

    def test_with_every_kind_of_character(self, tmp_path: Path) -> None:
        model = glu_model(Glu(form="gemm", bias=True))
        for node in model.graph.node:
            for values in (node.input, node.output):
                for index, name in enumerate(values):
                    if name.startswith("v"):
                        values[index] = f"scope/{name}:0 ü"
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        feeds = {"x": activations(9, 8)}
        assert kernels(applied(path, plan_for(path, feeds, Precision.INT8)))["MatMulIntegerToFloat"] == 3

    def test_weight_that_two_sites_share(self, tmp_path: Path) -> None:
        b = Builder()
        weight = b.const(b.random(8, 8))
        b.op("MatMul", b.op("MatMul", "x", weight), weight, outputs=["y"])
        path = tmp_path / "model.onnx"
        onnx.save(b.model({"x": (FLOAT, [3, 8])}, {"y": (FLOAT, [3, 8])}), path)
        feeds = {"x": activations(3, 8)}
        made = applied(path, plan_for(path, feeds, lambda s: Precision.INT8 if s.input == "x" else Precision.FP32))
        assert kernels(made)["MatMulIntegerToFloat"] == 1
        np.testing.assert_allclose(run(made, feeds)[0], run(path, feeds)[0], atol=0.1)


@settings(max_examples=25)
@given(
    glu=st.builds(
        Glu,
        activation=st.sampled_from(sorted(set(ACTIVATIONS) - {"swish"})),  # ONNX Runtime has no kernel for Swish
        form=st.sampled_from(LINEAR_FORMS),
        packing=st.sampled_from(PACKINGS),
        gate_first=st.booleans(),
        bias=st.booleans(),
        between=st.lists(st.sampled_from(["Cast", "Identity"]), max_size=2).map(tuple),
    ),
    opset=st.integers(13, 24),
    bits=st.integers(4, 8),
    scheme=st.sampled_from(["asymmetric", "symmetric"]),
    described=st.booleans(),
)
def test_any_block_runs_in_integers(
    tmp_path_factory: pytest.TempPathFactory, glu: Glu, opset: int, bits: int, scheme: str, described: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.onnx"
    model = glu_model(glu, opset=max(opset, ACTIVATIONS[glu.activation].opset))
    onnx.save(onnx.shape_inference.infer_shapes(model) if described else model, path)
    feeds = {"x": activations(12, 8)}
    plan = plan_for(path, feeds, Precision.integer(bits), activations=scheme)
    made = applied(path, plan)
    assert kernels(made)["MatMulIntegerToFloat"] == len(plan.sites)
    before, after = run(path, feeds)[0], run(made, feeds)[0]
    assert np.abs(before - after).max() < 2.0 ** (3 - bits) * np.abs(before).max()


class TestRefused:
    def test_old_opset(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        model = glu_model(Glu(), opset=12)
        onnx.save(model, path)
        plan = plan_for(path, {"x": activations(3, 8)}, Precision.INT8)
        model.opset_import[0].version = 6  # before what is lifted to 13
        onnx.save(model, path)
        with pytest.raises(GraphError, match="opset 6, where DequantizeLinear has no scale per channel"):
            apply_plan(path, plan)

    def test_plan_of_another_model(self, tmp_path: Path) -> None:
        path, other = tmp_path / "model.onnx", tmp_path / "other.onnx"
        onnx.save(glu_model(Glu()), path)
        onnx.save(glu_model(Glu(inner=20)), other)
        plan = plan_for(path, {"x": activations(3, 8)}, Precision.INT8)
        with pytest.raises(GraphError, match="this site of the plan is not in the graph"):
            apply_plan(other, plan)

    def test_no_range(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(glu_model(Glu()), path)
        plan = plan_for(path, {"x": activations(3, 8)}, Precision.INT8)
        plan.sites[1].range = None
        with pytest.raises(GraphError, match="holds no range"):
            apply_plan(path, plan)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("precision", [Precision.INT8, Precision.W8A8_BLOCK, Precision.W8A16])
    def test_weight_that_is_not_finite(self, tmp_path: Path, value: float, precision: Precision) -> None:
        b = Builder()
        weight = b.random(8, 8)
        weight[3, 2] = value
        b.op("MatMul", "x", b.const(weight), outputs=["y"], name="broken")
        path = tmp_path / "model.onnx"
        onnx.save(b.model({"x": (FLOAT, [3, 8])}, {"y": (FLOAT, [3, 8])}), path)
        with pytest.raises(GraphError, match="broken: the weight holds NaN or infinity"):
            apply_plan(path, plan_for(path, {"x": activations(3, 8)}, precision))
