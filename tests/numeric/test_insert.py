"""What is inserted computes what its definition says: against numpy, onnx's reference evaluator and ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from spq_graph.errors import GraphError
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.forms.reading import precision_of
from spq_graph.passes.graph import load_graph
from spq_graph.recipe import Precision
from spq_graph.runtime.executed import check_integer_sites
from spq_graph.runtime.session import execute_once
from spq_graph.sites import Role, Site
from tests.decoder_graphs import Decoder, decoder, token_feeds
from tests.graphs import ACTIVATIONS, LINEAR_FORMS, Array, Builder, Glu, LinearForm, glu_model
from tests.inserting import activations, applied, fake_quantized, fake_quantized_weight, kernels, plan_for, run

FLOAT = onnx.TensorProto.FLOAT


def linear(folder: Path, form: LinearForm, rows: int, columns: int, *, half: bool = False) -> tuple[Path, Array, Array]:
    """One projection with a bias: its file, the weight as the product sees it, and the bias."""
    dtype = np.float16 if half else np.float32
    b = Builder(dtype=dtype, seed=rows)
    b.op("Identity", b.linear("x", rows, columns, form=form, bias=True), outputs=["y"])
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    path = folder / "model.onnx"
    onnx.save(b.model({"x": (kind, ["n", rows])}, {"y": (kind, ["n", columns])}), path)
    again = Builder(dtype=dtype, seed=rows)
    weight, bias = again.random(rows, columns), again.random(columns)
    if form == "half":
        weight = weight.astype(np.float16).astype(dtype)
    return path, weight, bias


class TestOneSite:
    @pytest.mark.parametrize("form", LINEAR_FORMS)
    @pytest.mark.parametrize("bits", [8, 6, 4])
    def test_every_form(self, tmp_path: Path, form: LinearForm, bits: int) -> None:
        path, weight, bias = linear(tmp_path, form, 24, 24)  # square: a transposition too many would go unnoticed
        x = activations(40, 24)
        plan = plan_for(path, {"x": x}, Precision.integer(bits))
        made = applied(path, plan)
        expected = fake_quantized(x, x.min(), x.max(), bits) @ fake_quantized_weight(weight, bits) + bias
        np.testing.assert_allclose(run(made, {"x": x})[0], expected, atol=2e-4)
        assert kernels(made)["MatMulIntegerToFloat"] == 1

    @pytest.mark.parametrize("bits", [8, 7, 5])
    @pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
    @pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
    def test_every_quantizer(
        self,
        tmp_path: Path,
        bits: int,
        scheme: Literal["asymmetric", "symmetric"],
        granularity: Literal["per_channel", "per_tensor"],
    ) -> None:
        path, weight, bias = linear(tmp_path, "matmul", 20, 12)
        x = activations(30, 20)
        plan = plan_for(path, {"x": x}, Precision.integer(bits), activations=scheme, weights=granularity)
        made = applied(path, plan)
        outside = 1.7 * x  # beyond the calibrated range, where codes must stay within their bits
        codes = fake_quantized(outside, x.min(), x.max(), bits, symmetric=scheme == "symmetric")
        expected = codes @ fake_quantized_weight(weight, bits, per_channel=granularity == "per_channel") + bias
        np.testing.assert_allclose(run(made, {"x": outside})[0], expected, atol=2e-4)
        assert kernels(made)["MatMulIntegerToFloat"] == 1

    @pytest.mark.parametrize("opset", [13, 17, 18, 23, 24])
    def test_every_opset(self, tmp_path: Path, opset: int) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(glu_model(Glu(form="gemm_transposed", bias=True), opset=opset), path)
        feeds = {"x": activations(9, 8)}
        made = applied(path, plan_for(path, feeds, Precision.INT8))
        assert kernels(made)["MatMulIntegerToFloat"] == 3

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_every_gate(self, tmp_path: Path, activation: str) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(glu_model(Glu(activation), opset=max(13, ACTIVATIONS[activation].opset)), path)
        feeds = {"x": activations(9, 8)}
        made = applied(path, plan_for(path, feeds, Precision.INT8))
        assert kernels(made)["MatMulIntegerToFloat"] == 3

    @pytest.mark.parametrize("after", ["Relu", "Clip", "Identity", "Dropout"])
    @pytest.mark.parametrize("axes", [["tokens", 8], ["rows", "tokens", 8], [2, 5, 8]])
    def test_what_follows_a_product(self, tmp_path: Path, axes: list[int | str], after: str) -> None:
        """ONNX Runtime takes a Relu that one other node reads for a part of what it would fuse, and then does not."""
        b = Builder()
        made = b.linear("x", 8, 6)
        cut = b.op(after, made, *([b.number(0.0)] if after == "Clip" else []))
        cut = b.op("Relu", cut) if after in ("Identity", "Dropout") else cut
        b.op("Abs", cut, outputs=["y"])
        path = tmp_path / "model.onnx"
        onnx.save(b.model({"x": (FLOAT, axes)}, {"y": (FLOAT, [*axes[:-1], 6])}), path)
        feeds = {"x": activations(10, 8).reshape(*((2, 5) if len(axes) == 3 else (10,)), 8)}
        after_all = applied(path, plan_for(path, feeds, Precision.INT8))
        assert kernels(after_all)["MatMulIntegerToFloat"] == 1
        np.testing.assert_allclose(run(after_all, feeds)[0], run(path, feeds)[0], atol=0.1)

    @pytest.mark.parametrize("form", ["matmul", "gemm_transposed"])
    def test_half_precision_graph(self, tmp_path: Path, form: LinearForm) -> None:
        path, weight, bias = linear(tmp_path, form, 24, 24, half=True)
        x = activations(16, 24).astype(np.float16)
        made = applied(path, plan_for(path, {"x": x}, Precision.INT8))
        expected = fake_quantized(x, x.min(), x.max(), 8) @ fake_quantized_weight(weight, 8) + bias
        [y] = run(made, {"x": x})
        assert y.dtype == np.float16
        np.testing.assert_allclose(y, expected, atol=2e-2)  # two roundings to half at this magnitude
        assert kernels(made)["MatMulIntegerToFloat"] == 1

    @pytest.mark.parametrize("shape", [(3, 2, 5, 8), (2, 7, 8), (8,)])
    def test_every_rank(self, tmp_path: Path, shape: tuple[int, ...]) -> None:
        b = Builder()
        weight = b.random(8, 6)
        b.op("MatMul", "x", b.const(weight), outputs=["y"])
        path = tmp_path / "model.onnx"
        onnx.save(b.model({"x": (FLOAT, shape)}, {"y": (FLOAT, [*shape[:-1], 6])}), path)
        x = activations(1, int(np.prod(shape))).reshape(shape)
        made = applied(path, plan_for(path, {"x": x}, Precision.INT8))
        expected = fake_quantized(x, x.min(), x.max(), 8) @ fake_quantized_weight(weight, 8)
        np.testing.assert_allclose(run(made, {"x": x})[0], expected, atol=1e-4)


class TestAddBehind:
    """ONNX Runtime merges a product and an Add into Gemm, which runs in floats, unless something parts them."""

    @pytest.mark.parametrize("shape", [(3, 8), ("n", 8), (2, 3, 8), (1, 2, 3, 8), ("n", 3, 8), ("n", "m", 8)])
    @pytest.mark.parametrize("other", ["bias", "residual"])
    @pytest.mark.parametrize("described", [True, False])
    def test_runs_in_integers(self, tmp_path: Path, shape: tuple[int | str, ...], other: str, described: bool) -> None:
        b = Builder()
        product = b.op("MatMul", "x", b.const(b.random(8, 8)), name="product")
        b.op("Add", product, "x" if other == "residual" else b.const(b.random(8)), outputs=["y"])
        model = b.model({"x": (FLOAT, shape)}, {"y": (FLOAT, shape)})
        path = tmp_path / "model.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(model) if described else model, path)
        sizes = [size if isinstance(size, int) else 4 for size in shape]
        feeds = {"x": activations(1, int(np.prod(sizes))).reshape(sizes)}
        made = applied(path, plan_for(path, feeds, Precision.INT8))
        assert kernels(made)["MatMulIntegerToFloat"] == 1
        assert np.abs(run(made, feeds)[0] - run(path, feeds)[0]).max() < 0.1

    def test_nothing_is_added_where_nothing_threatens(self, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(decoder()), path)
        found = Counter(n.op_type for n in onnx.load(path).graph.node)
        made = applied(path, plan_for(path, token_feeds(), Precision.INT8))
        assert Counter(n.op_type for n in onnx.load(made).graph.node)["Reshape"] == found["Reshape"]


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


def to_int8(site: Site) -> Precision:
    return Precision.FP32 if site.role is Role.LM_HEAD else Precision.INT8


class TestWholeGraphs:
    def saved(self, folder: Path, model: onnx.ModelProto) -> Path:
        path = folder / "model.onnx"
        onnx.save(model, path)
        return path

    @pytest.mark.parametrize("bits", [8, 6])
    def test_block_against_numpy(self, tmp_path: Path, bits: int) -> None:
        path = self.saved(tmp_path, glu_model(Glu(width=16, inner=24)))
        x = activations(20, 16)
        plan = plan_for(path, {"x": x}, Precision.integer(bits))
        low = {site.role: site.range for site in plan.sites if site.range}
        draw = Builder()
        gate, up, down = (fake_quantized_weight(draw.random(*s), bits) for s in ((16, 24), (16, 24), (24, 16)))
        entering = fake_quantized(x, *low[Role.GLU_GATE], bits)
        g = entering @ gate
        hidden = fake_quantized(g / (1 + np.exp(-g)) * (entering @ up), *low[Role.GLU_DOWN], bits)
        np.testing.assert_allclose(run(applied(path, plan), {"x": x})[0], x + hidden @ down, atol=5e-4)

    def test_onnx_reference_agrees(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path, decoder(Decoder(kv_heads=1, layers=1), naming="torchscript"))
        feeds = token_feeds()
        made = applied(path, plan_for(path, feeds, Precision.INT8))
        [reference] = ReferenceEvaluator(onnx.load(made)).run(None, feeds)
        np.testing.assert_allclose(run(made, feeds)[0], reference, atol=1e-4)

    @pytest.mark.parametrize("dtype", [np.float32, np.float16])
    @pytest.mark.parametrize("bits", [8, 6])
    def test_one_quantizer_for_each_input(self, tmp_path: Path, bits: int, dtype: type[np.generic]) -> None:
        path = self.saved(tmp_path, decoder(dtype=dtype))
        as_is = Precision.FP16 if dtype is np.float16 else Precision.FP32
        plan = plan_for(path, token_feeds(), lambda s: as_is if s.role is Role.LM_HEAD else Precision.integer(bits))
        made = applied(path, plan)
        found = Counter(node.op_type for node in onnx.load(made).graph.node)
        inputs = {site.input for site in plan.integer_sites}
        assert (len(plan.integer_sites), len(inputs)) == (14, 8)
        assert found["QuantizeLinear"] == len(inputs)
        assert found["DequantizeLinear"] == len(inputs) + len(plan.integer_sites)
        assert found["Clip"] == (len(inputs) if bits < 8 else 0)

    @pytest.mark.parametrize(
        ("shape", "opset", "dtype"),
        [
            (Decoder(), 13, np.float32),
            (Decoder(kv_heads=1, tied=True), 21, np.float32),
            (Decoder(attention="packed", glu=Glu(packing="split", bias=True)), 17, np.float32),
            (Decoder(attention="GroupQueryAttention", kv_heads=1, glu=Glu(width=16, form="transpose")), 21, np.float32),
            (Decoder(attention="Attention", capped=True), 23, np.float32),
            (Decoder(experts=2, glu=Glu("gelu", packing="slice")), 20, np.float32),
            (Decoder(glu=Glu(form="half")), 21, np.float32),
            (Decoder(kv_heads=1), 21, np.float16),
        ],
        ids=lambda value: "" if isinstance(value, Decoder) else str(value),
    )
    @pytest.mark.parametrize("bits", [8, 6])
    def test_every_planned_site_runs_in_integers(
        self, tmp_path: Path, shape: Decoder, opset: int, dtype: type[np.generic], bits: int
    ) -> None:
        path = self.saved(tmp_path, decoder(shape, opset=opset, dtype=dtype))
        plan = plan_for(path, token_feeds(), Precision.integer(bits))
        made = applied(path, plan)
        executed = execute_once(made, token_feeds(batch=1)["input_ids"])
        check_integer_sites(executed, plan.integer_sites, "")
        assert executed.integer_kernels == len(plan.sites)

    def test_mixed_precisions(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path, decoder(Decoder(glu=Glu(width=32, inner=64))))
        chosen = {
            Role.GLU_DOWN: Precision.W8A8_BLOCK,
            Role.GLU_GATE: Precision.INT6_IN_8,
            Role.GLU_UP: Precision.INT8,
            Role.ATTN_O: Precision.FP16,
            Role.LM_HEAD: Precision.FP32,
        }
        feeds = token_feeds()
        plan = plan_for(path, feeds, lambda s: chosen.get(s.role, Precision.INT8))
        made = applied(path, plan)
        executed = execute_once(made, token_feeds(batch=1)["input_ids"])
        check_integer_sites(executed, plan.integer_sites, "")
        assert executed.ops["MatMulNBits"] == 2
        before, after = run(path, feeds)[0], run(made, feeds)[0]
        assert 0 < np.abs(before - after).max() < 0.2 * np.abs(before).max()

    def test_the_same_bytes_twice(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path, decoder())
        plan = plan_for(path, token_feeds(), to_int8)
        one, two = applied(path, plan, "one.onnx"), applied(path, plan, "two.onnx")
        data = [file.with_name(f"{file.name}.data") for file in (one, two)]
        assert one.read_bytes().replace(b"one.onnx", b"two.onnx") == two.read_bytes()
        assert [file.exists() for file in data] == [False, False] or data[0].read_bytes() == data[1].read_bytes()

    def test_the_order_of_the_plan_does_not_matter(self, tmp_path: Path) -> None:
        path = self.saved(tmp_path, decoder())
        plan = plan_for(path, token_feeds(), to_int8)
        turned = plan.model_copy(update={"sites": plan.sites[::-1]})
        one, two = applied(path, plan, "one.onnx"), applied(path, turned, "two.onnx")
        assert [n.name for n in onnx.load(one).graph.node] == [n.name for n in onnx.load(two).graph.node]
