"""Sites whose activation stays in floating point: weights alone in 8 bits, and half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from spq_graph.passes.apply import apply_plan
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.forms.reading import precision_of
from spq_graph.terms.errors import GraphError
from spq_graph.terms.precision import Precision
from tests.numeric.test_insert import FLOAT
from tests.support.graphs import Builder, LinearForm
from tests.support.inserting import activations, applied, linear, plan_for, run


class TestWeightOnly:
    @pytest.mark.parametrize(("rows", "block"), [(128, 128), (192, 64), (96, 32), (40, 32), (5, 32)])
    def test_codes_and_result(self, tmp_path: Path, rows: int, block: int) -> None:
        path, weight, bias = linear(tmp_path, "transpose", rows, 6)
        x = activations(12, rows)
        made = applied(path, plan_for(path, {"x": x}, Precision.W8A8_BLOCK))
        node = next(n for n in onnx.load(made).graph.node if n.op_type == "MatMulNBits")
        constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(made).graph.initializer}
        codes, scales = constants[node.input[1]], constants[node.input[2]].reshape(6, -1)
        assert codes.shape == (6, -(-rows // block), block)
        restored = ((codes.astype(np.float64) - 128) * scales[..., None]).reshape(6, -1)[:, :rows].T
        assert np.all(np.abs(restored - weight) <= np.repeat(scales, block, axis=1)[:, :rows].T * 0.5001)
        exact = x.astype(np.float64) @ restored + bias
        assert np.abs(run(made, {"x": x})[0] - exact).max() < 0.02 * np.abs(exact).max()

    def test_whose_error_it_is(self, tmp_path: Path) -> None:
        """Of w8a16 that of the weights alone, to the last bits of float32; by block, activations have theirs too."""
        path, _, bias = linear(tmp_path, "matmul", 256, 64)
        x = activations(16, 256)
        x[3, 200] = 900.0
        errors = {}
        for precision, level in ((Precision.W8A16, 1), (Precision.W8A8_BLOCK, 4)):
            made = applied(path, plan_for(path, {"x": x}, precision))
            node = next(n for n in onnx.load(made).graph.node if n.op_type == "MatMulNBits")
            assert {a.name: a.i for a in node.attribute}["accuracy_level"] == level
            assert precision_of(next(n for n in load_graph(made).graph if n.name == node.name)) is precision
            constants = {t.name: numpy_helper.to_array(t) for t in onnx.load(made).graph.initializer}
            codes, scales = constants[node.input[1]], constants[node.input[2]].reshape(64, -1)
            held = ((codes.astype(np.float64) - 128) * scales[..., None]).reshape(64, -1).T
            of_weights = x.astype(np.float64) @ held + bias
            errors[precision] = np.linalg.norm(run(made, {"x": x})[0] - of_weights) / np.linalg.norm(of_weights)
        assert errors[Precision.W8A16] < 1e-6
        assert 1e-3 < errors[Precision.W8A8_BLOCK] < 0.05

    def test_half_precision_graph(self, tmp_path: Path) -> None:
        path, weight, bias = linear(tmp_path, "gemm_transposed", 64, 64, half=True)
        x = activations(8, 64).astype(np.float16)
        [y] = run(applied(path, plan_for(path, {"x": x}, Precision.W8A8_BLOCK)), {"x": x})
        exact = x.astype(np.float64) @ weight + bias
        assert y.dtype == np.float16
        assert np.abs(y - exact).max() < 0.02 * np.abs(exact).max()


class TestFloat:
    @pytest.mark.parametrize("form", ["matmul", "gemm_transposed", "transpose"])
    def test_stored_in_half(self, tmp_path: Path, form: LinearForm) -> None:
        path, weight, bias = linear(tmp_path, form, 32, 32)
        x = activations(8, 32)
        made = applied(path, plan_for(path, {"x": x}, Precision.FP16))
        stored = [t for t in onnx.load(made).graph.initializer if len(t.dims) == 2]
        assert [t.data_type for t in stored] == [onnx.TensorProto.FLOAT16]
        expected = x.astype(np.float64) @ weight.astype(np.float16).astype(np.float64) + bias
        np.testing.assert_allclose(run(made, {"x": x})[0], expected, atol=1e-5)

    def test_half_graph_computed_in_single(self, tmp_path: Path) -> None:
        path, weight, bias = linear(tmp_path, "gemm_transposed", 24, 24, half=True)
        x = activations(8, 24).astype(np.float16)
        made = applied(path, plan_for(path, {"x": x}, Precision.FP32))
        node = next(n for n in onnx.load(made).graph.node if n.op_type == "MatMul")
        types = {v.name: v.type.tensor_type.elem_type for v in onnx.load(made).graph.value_info}
        assert types[node.input[0]] == FLOAT
        expected = (x.astype(np.float32) @ weight.astype(np.float32)).astype(np.float16) + bias
        np.testing.assert_allclose(run(made, {"x": x})[0], expected, rtol=2e-3, atol=2e-3)

    @pytest.mark.parametrize("half", [False, True])
    def test_left_as_it_is(self, tmp_path: Path, half: bool) -> None:
        path, _, _ = linear(tmp_path, "gemm_transposed", 24, 24, half=half)
        x = activations(8, 24).astype(np.float16 if half else np.float32)
        made = applied(path, plan_for(path, {"x": x}, Precision.FP16 if half else Precision.FP32))
        assert [n.op_type for n in onnx.load(made).graph.node] == [n.op_type for n in onnx.load(path).graph.node]
        np.testing.assert_array_equal(run(made, {"x": x})[0], run(path, {"x": x})[0])

    def test_stored_in_half_already(self, tmp_path: Path) -> None:
        path, _, _ = linear(tmp_path, "half", 24, 24)
        x = activations(8, 24)
        made = applied(path, plan_for(path, {"x": x}, Precision.FP16))
        np.testing.assert_array_equal(run(made, {"x": x})[0], run(path, {"x": x})[0])

    def test_weight_beyond_half(self, tmp_path: Path) -> None:
        b = Builder()
        b.op("MatMul", "x", b.const(np.full((4, 4), 70_000, np.float32)), outputs=["y"], name="big")
        path = tmp_path / "model.onnx"
        onnx.save(b.model({"x": (FLOAT, [2, 4])}, {"y": (FLOAT, [2, 4])}), path)
        plan = plan_for(path, {"x": activations(2, 4)}, Precision.FP16)
        with pytest.raises(GraphError, match="big: a weight of 7e\\+04 does not fit float16"):
            apply_plan(path, plan)
