"""One site as spq::Fp8MatMul, without any library: against numpy, ONNX Runtime and onnx's reference evaluator."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from spq_graph.passes.numbers.fp8 import ACTIVATIONS, unpack_panels
from spq_graph.terms.precision import Precision
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.eight_bits import BY_NAME
from tests.support.graphs import LINEAR_FORMS, Builder, LinearForm
from tests.support.inserting import activations, applied, plan_for, run
from tests.support.inserting_fp8 import EACH, calls, check_everywhere, expected, product

FLOAT = onnx.TensorProto.FLOAT


class TestOneSite:
    @EACH
    @pytest.mark.parametrize("opset", [19, 20, 21, 22, 23, 24])
    def test_every_opset(self, tmp_path: Path, precision: Precision, opset: int) -> None:
        path, weight = product(tmp_path, 40, 70, opset=opset)
        x = activations(9, 40)
        plan = plan_for(path, {"x": x}, precision)
        made = applied(path, plan)
        opsets = {o.domain: o.version for o in onnx.load(made).opset_import}
        assert (opsets[""], opsets["spq"]) == (opset, 1)
        y = check_everywhere(made, plan, 1.3 * x)  # beyond the calibrated range too, where it saturates
        assert np.abs(y - 1.3 * x @ weight).max() > 0

    @EACH
    @pytest.mark.parametrize(("rows", "columns"), [(2, 1), (3, 5), (7, 32), (33, 33), (64, 31), (65, 97), (128, 96)])
    def test_every_size(self, tmp_path: Path, precision: Precision, rows: int, columns: int) -> None:
        path, _ = product(tmp_path, rows, columns)
        x = activations(6, rows)
        plan = plan_for(path, {"x": x}, precision)
        made = applied(path, plan)
        check_everywhere(made, plan, x)
        [(node, held)] = calls(made)
        assert held[node.input[1]].shape == (-(-columns // 32), -(-rows // 2), 64)

    @pytest.mark.parametrize("form", LINEAR_FORMS)
    @pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
    def test_weights(self, tmp_path: Path, form: LinearForm, granularity: str) -> None:
        path, weight = product(tmp_path, 24, 24, form=form)  # square: a transposition too many would go unnoticed
        if form == "half":
            weight = weight.astype(np.float16).astype(np.float32)
        x = activations(8, 24)
        plan = plan_for(path, {"x": x}, Precision.FP8_E4M3, weights=granularity)
        made = applied(path, plan)
        [(node, held)] = calls(made)
        scales = held[node.input[2]]
        absmax = np.abs(weight).max(axis=0 if granularity == "per_channel" else None)
        np.testing.assert_array_equal(scales, absmax / np.float32(448))
        codes = unpack_panels(held[node.input[1]], (24, 24))
        table = np.array([BY_NAME["fp8_e4m3"].value(code) for code in range(256)])
        np.testing.assert_array_equal(table[codes], BY_NAME["fp8_e4m3"].rounded(weight / scales))
        check_everywhere(made, plan, x)

    @EACH
    def test_activations_reach_the_product_as_they_should(self, tmp_path: Path, precision: Precision) -> None:
        """Through a product with the identity, every rounding of an activation shows."""
        path, _ = product(tmp_path, 2, 2, weight=np.eye(2))
        form = ACTIVATIONS[precision]
        oracle = BY_NAME[form.name if form else "fp8_e4m3"]
        telling = oracle.telling[np.abs(oracle.telling) < 1e30]  # times a scale these are finite
        largest = float(oracle.positive[-1])
        scale = np.float32(3.7)  # no power of two: the division rounds too
        x = np.stack([telling * scale, np.zeros_like(telling)], axis=1)
        low, high = (float(np.float32(sign * largest) * scale) for sign in (-1, 1))
        plan = plan_for(path, {"x": x}, precision)
        plan.sites[0].range = (low, high)
        made = applied(path, plan)
        [(node, held)] = calls(made)
        a_scale = held[node.input[3]][()]
        wanted = x[:, 0]
        if form is not None:
            # The factors are float32 both, and their product is rounded once.
            wanted = oracle.rounded(x[:, 0] / a_scale).astype(np.float32) * a_scale
        for found in (run(made, {"x": x})[0], ReferenceEvaluator(onnx.load(made)).run(None, {"x": x})[0]):
            # An identity's codes are 448 times a scale of 1/448: two roundings, each of half an ulp.
            np.testing.assert_allclose(found[:, 0], wanted, rtol=2.0**-23, atol=0)
            assert not found[:, 1].any()

    @EACH
    def test_what_is_not_finite_stays(self, tmp_path: Path, precision: Precision) -> None:
        path, _ = product(tmp_path, 2, 2, weight=np.array([[1.0, 0.5], [0.5, 1.0]]))
        x = activations(4, 2)
        made = applied(path, plan_for(path, {"x": x}, precision))
        x[0, 0], x[1, 1], x[2, 0] = np.nan, np.inf, -np.inf
        with np.errstate(invalid="ignore"):
            [reference] = ReferenceEvaluator(onnx.load(made)).run(None, {"x": x})
        for y in (run(made, {"x": x})[0], reference):
            assert np.isnan(y[0]).all()
            assert (y[1] == np.inf).all()
            assert (y[2] == -np.inf).all()
            assert np.isfinite(y[3]).all()

    @EACH
    @pytest.mark.parametrize("form", ["matmul", "gemm_transposed"])
    def test_half_precision_graph(self, tmp_path: Path, precision: Precision, form: LinearForm) -> None:
        path, _ = product(tmp_path, 24, 40, dtype=np.float16, form=form)
        x = activations(16, 24).astype(np.float16)
        plan = plan_for(path, {"x": x}, precision)
        made = applied(path, plan)
        assert [n.op_type for n in onnx.load(made).graph.node] == ["Fp8MatMul", "Identity"]
        check_everywhere(made, plan, x)

    @EACH
    def test_gemm_with_bias(self, tmp_path: Path, precision: Precision) -> None:
        b = Builder()
        b.op("Gemm", "x", b.const(b.random(7, 24)), b.const(b.random(7)), outputs=["y"], name="product", transB=1)
        bias = numpy_helper.to_array(b.initializers[1])
        path = tmp_path / "model.onnx"
        onnx.save(b.model({"x": (FLOAT, [None, 24])}, {"y": (FLOAT, [None, 7])}), path)
        x = activations(5, 24)
        plan = plan_for(path, {"x": x}, precision)
        made = applied(path, plan)
        assert [n.op_type for n in onnx.load(made).graph.node] == ["Fp8MatMul", "Add"]
        wanted, bound = expected(made, plan, x)
        total = wanted + bias
        assert (np.abs(run(made, {"x": x})[0] - total) <= bound + np.abs(total) * 2.0**-23).all()

    @EACH
    def test_double_precision_graph(self, tmp_path: Path, precision: Precision) -> None:
        path, _ = product(tmp_path, 24, 8, dtype=np.float64)
        x = activations(5, 24).astype(np.float64)
        plan = plan_for(path, {"x": x}, precision)
        made = applied(path, plan)
        wanted, bound = expected(made, plan, x.astype(np.float32))
        [y] = run(made, {"x": x})
        assert y.dtype == np.float64
        assert (np.abs(y - wanted) <= bound).all()

    @EACH
    def test_graph_in_bfloat16(self, tmp_path: Path, precision: Precision) -> None:
        """ONNX Runtime has no such product on the CPU: it becomes one in float32."""
        bfloat16 = ml_dtypes.bfloat16
        path, _ = product(tmp_path, 24, 8, dtype=bfloat16)
        x = activations(5, 24).astype(bfloat16)
        plan = plan_for(path, {"x": x}, precision)
        made = applied(path, plan)
        assert [n.op_type for n in onnx.load(made).graph.node] == ["Fp8MatMul", "Identity"]
        check_everywhere(made, plan, x.astype(np.float32))

    @pytest.mark.parametrize("shape", [(3, 2, 5, 8), (2, 7, 8), (8,)])
    def test_every_rank(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        b = Builder()
        b.op("MatMul", "x", b.const(b.random(8, 6)), outputs=["y"])
        path = tmp_path / "model.onnx"
        onnx.save(b.model({"x": (FLOAT, shape)}, {"y": (FLOAT, [*shape[:-1], 6])}), path)
        x = activations(1, int(np.prod(shape))).reshape(shape)
        plan = plan_for(path, {"x": x}, Precision.FP8_E4M3)
        check_everywhere(applied(path, plan), plan, x)


class TestNode:
    @EACH
    @pytest.mark.parametrize("wanted", ["fast", "exact"])
    def test_attributes(self, tmp_path: Path, precision: Precision, wanted: str) -> None:
        path, _ = product(tmp_path, 24, 40)
        x = activations(5, 24)
        [(node, held)] = calls(applied(path, plan_for(path, {"x": x}, precision, fp8_activations=wanted)))
        found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        largest = np.abs(x).max()
        a_type, a_scale, fast = {
            Precision.FP8_E4M3: (17, largest / np.float32(448), 1),
            Precision.FP8_E5M2: (19, largest / np.float32(57344), 1),
            Precision.W8FP8A16: (1, 1.0, int(wanted == "fast")),
        }[precision]
        assert found == {"K": 24, "N": 40, "a_type": a_type, "fast": fast}
        scale = held[node.input[3]]
        assert (scale.dtype, scale.shape) == (np.float32, ())
        np.testing.assert_allclose(scale, a_scale, rtol=2.0**-23)  # one division, in float32 here

    def test_name_and_metadata_stay(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(decoder(Decoder(layers=1)), path)
        plan = plan_for(path, token_feeds(), Precision.FP8_E4M3)
        nodes = {node.name: node for node, _ in calls(applied(path, plan))}
        assert list(nodes) == [site.node for site in plan.sites]
        for site in plan.sites:
            kept = {p.key: p.value for p in nodes[site.node].metadata_props}
            assert kept["spq_graph.site"] == site.key
            assert site.key in kept["pkg.torch.onnx.name_scopes"]

    def test_shapes_stay_described(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(decoder(Decoder(layers=1))), path)
        made = applied(path, plan_for(path, token_feeds(), Precision.FP8_E4M3))
        before, after = ({v.name: v.type for v in onnx.load(p).graph.value_info} for p in (path, made))
        described = [node.output[0] for node, _ in calls(made) if node.output[0] != "logits"]
        assert described
        assert all(after[name] == before[name] for name in described)

    def test_one_scale_for_one_input(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(decoder(Decoder(layers=1)), path)
        plan = plan_for(path, token_feeds(), Precision.FP8_E4M3)
        scales = {(node.input[0], node.input[3]) for node, _ in calls(applied(path, plan))}
        assert len(scales) == len({scale for _, scale in scales}) == len({site.input for site in plan.sites})
