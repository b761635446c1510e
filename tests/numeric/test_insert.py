"""What is inserted computes what its definition says: against numpy, onnx's reference evaluator and ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from spq_graph.passes.adapt.prepared import prepared
from spq_graph.runtime.proof.held import check_executed
from spq_graph.runtime.sessions.session import execute_once
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import PROFILES
from spq_graph.views.words import integer_kernels
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import ACTIVATIONS, LINEAR_FORMS, Builder, Glu, LinearForm, glu_model
from tests.support.inserting import (
    activations,
    applied,
    fake_quantized,
    fake_quantized_weight,
    kernels,
    linear,
    plan_for,
    run,
)

FLOAT = onnx.TensorProto.FLOAT


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
        found = Counter(n.op_type for n in prepared(path).adapted(PROFILES["cpu"]).graph)
        made = applied(path, plan_for(path, token_feeds(), Precision.INT8))
        assert Counter(n.op_type for n in onnx.load(made).graph.node)["Reshape"] == found["Reshape"]


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
        check_executed(executed, plan, "")
        assert integer_kernels(executed.ops) == len(plan.sites)

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
        check_executed(executed, plan, "")
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
