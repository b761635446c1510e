"""What ONNX Runtime's optimizer makes of a decoder, really made by it, and its fused operators one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.canon.unfuse import Unfuse
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.files.save import save_model
from spq_graph.passes.find.identify import Identified, identify
from spq_graph.terms.site import Role
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.graphs import CONTRIB, Builder, Glu

ort = pytest.importorskip("onnxruntime")
LEVELS = ("BASIC", "EXTENDED", "LAYOUT", "ALL")
SHAPES = {
    "swiglu": Decoder(kv_heads=1, capped=True, tied=True),
    "geglu_bias": Decoder(attention="packed", glu=Glu("erf_half_last", bias=True)),
    "fused_halves": Decoder(glu=Glu("tanh_half_last", packing="split", form="transpose")),
}


def canonical(path: Path) -> ir.Model:
    model = load_graph(path)
    Canonicalize()(model)
    return model


def found_in(path: Path) -> Identified:
    return identify(canonical(path))


def optimized(path: Path, level: str) -> Path:
    """A graph as ONNX Runtime's optimizer leaves it at this level."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath, options.log_severity_level = str(path.with_name("optimized.onnx")), 3
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return path.with_name("optimized.onnx")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_sites_at_every_level(tmp_path: Path, shape: str, level: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(SHAPES[shape], naming="anonymous"), path)
    before, after = found_in(path), found_in(optimized(path, level))
    assert Counter((s.role, s.layer, s.shape) for s in after.sites) == Counter(
        (s.role, s.layer, s.shape) for s in before.sites
    )
    assert [(b.kind, b.layer) for b in after.blocks] == [(b.kind, b.layer) for b in before.blocks]
    assert after.unmatched == before.unmatched == []


def scaled(b: Builder) -> None:
    """A head with its scale, as MatMulScaleFusion writes it."""
    b.op("FusedMatMul", "x", b.const(b.random(8, 8)), domain=CONTRIB, alpha=0.25, outputs=["y"], name="/head/MatMul")


def turned(b: Builder) -> None:
    """A weight that lies transposed."""
    weight = b.const(b.random(8, 8))
    b.op("FusedMatMul", "x", weight, domain=CONTRIB, transB=1, outputs=["y"], name="/head/MatMul/Fusion")


def activated(b: Builder) -> None:
    """A product with its activation inside."""
    weight, bias = b.const(b.random(8, 8)), b.const(b.random(8))
    b.op("FusedGemm", "x", weight, bias, domain=CONTRIB, transB=1, activation="Relu", outputs=["y"], name="/head/Gemm")


FUSED = {scaled: ["MatMul", "Mul"], turned: ["Transpose", "MatMul"], activated: ["Gemm", "Relu"]}


@pytest.mark.parametrize("write", FUSED, ids=lambda write: write.__name__)
def test_products_are_written_out(tmp_path: Path, write: Callable[[Builder], None]) -> None:
    b = Builder()
    write(b)
    kind, path = (TensorProto.FLOAT, ["n", 8]), tmp_path / "model.onnx"
    onnx.save(b.model({"x": kind}, {"y": kind}), path)
    model = canonical(path)
    assert [node.op_type for node in model.graph] == FUSED[write]
    (site,) = identify(model).sites
    assert (site.key, site.node) == ("head", b.nodes[0].name)
    save_model(model, tmp_path / "written.onnx")
    x = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)
    before, after = (
        ort.InferenceSession(file, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for file in (path, tmp_path / "written.onnx")
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("op_type", ["BiasGelu", "FastGelu"])
def test_a_bias_inside_of_an_activation(tmp_path: Path, op_type: str) -> None:
    b = Builder()
    gate, up = (b.op("MatMul", "x", b.const(b.random(8, 12))) for _ in range(2))
    activated = b.op(op_type, gate, b.const(b.random(12)), domain=CONTRIB)
    b.op("MatMul", b.op("Mul", activated, up), b.const(b.random(12, 8)), outputs=["y"])
    kind = (TensorProto.FLOAT, ["n", 8])
    onnx.save(b.model({"x": kind}, {"y": kind}), tmp_path / "model.onnx")
    found = found_in(tmp_path / "model.onnx")
    assert [site.role for site in found.sites] == [Role.GLU_GATE, Role.GLU_UP, Role.GLU_DOWN]
    assert [block.kind for block in found.blocks] == ["geglu"]


def test_gelu_as_its_function_says() -> None:
    """ONNX's own body of Gelu has sums where others write additions, and a root of a constant."""
    body = """<ir_version: 10, opset_import: ["" : 21]>
        g (float[n, 8] x) => (float[n, 8] y)
        <float half = {0.5}, float one = {1}, float c = {0.044715}, float three = {3}, float two_pi = {0.63661975}> {
            gate = MatMul(x, wg) up = MatMul(x, wu)
            scaled = Mul(half, gate) cube = Pow(gate, three) small = Mul(c, cube) poly = Sum(gate, small)
            root = Sqrt(two_pi) inner = Mul(root, poly) tanh = Tanh(inner) phi = Sum(one, tanh)
            act = Mul(scaled, phi) both = Mul(act, up) y = MatMul(both, wd)
        }"""
    proto = onnx.parser.parse_model(body)
    b = Builder()
    for name, shape in (("wg", (8, 12)), ("wu", (8, 12)), ("wd", (12, 8))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(b.random(*shape), name))
    model = ir.from_proto(proto)
    Canonicalize()(model)
    assert [block.kind for block in identify(model).blocks] == ["geglu"]


def test_what_holds_no_weight_stays(tmp_path: Path) -> None:
    b = Builder()
    scores = b.op("FusedMatMul", "x", "x", domain=CONTRIB, transB=1, alpha=0.5)
    b.op("Sum", scores, scores, scores, outputs=["y"])
    model = b.model({"x": (TensorProto.FLOAT, ["n", 8])}, {"y": (TensorProto.FLOAT, ["n", "n"])})
    read = ir.from_proto(model)
    assert not Unfuse()(read).modified
    assert [node.op_type for node in read.graph] == ["FusedMatMul", "Sum"]
