"""Weights that nodes cut out of initializers, or put together from them, are weights of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from spq_graph.passes.apply import save_model
from spq_graph.passes.graph import Canonicalize, load_graph
from spq_graph.passes.identify import Identified, identify
from spq_graph.sites import Role
from tests.graphs import Builder

ort = pytest.importorskip("onnxruntime")
WIDTH, INNER = 8, 12


def split(b: Builder, both: np.ndarray) -> tuple[str, str]:
    """Gate and up cut by one Split of a weight that holds them side by side."""
    gate, up = b.op("Split", b.const(both), b.const([INNER, INNER], np.int64), outputs=2, axis=1)
    return gate, up


def slices(b: Builder, both: np.ndarray) -> tuple[str, str]:
    """Cut by two Slices, behind a Cast and an Identity, from a weight that lies transposed."""
    stored = b.op("Identity", b.op("Cast", b.const(np.ascontiguousarray(both.T)), to=onnx.TensorProto.FLOAT))
    ends = [(0, INNER), (INNER, 2 * INNER)]
    parts = [b.op("Slice", stored, *(b.const([n], np.int64) for n in (low, high, 0))) for low, high in ends]
    gate, up = (b.op("Transpose", part, perm=[1, 0]) for part in parts)
    return gate, up


def reshaped(b: Builder, both: np.ndarray) -> tuple[str, str]:
    """Kept flat, and put in shape by the graph; up in two halves that are joined."""
    gate = b.op("Reshape", b.const(both[:, :INNER].reshape(-1)), b.const([WIDTH, INNER], np.int64))
    halves = [b.const(np.ascontiguousarray(half)) for half in np.split(both[:, INNER:], 2, axis=0)]
    return gate, b.op("Concat", *halves, axis=0)


FORMS = {form.__name__: form for form in (split, slices, reshaped)}


def write(path: Path, form: str, opset: int) -> np.ndarray:
    """A GLU whose gate and up are cut in this way; returns both, side by side."""
    b = Builder(opset)
    both = b.random(WIDTH, 2 * INNER)
    gate, up = (b.op("MatMul", "x", weight) for weight in FORMS[form](b, both))
    product = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
    b.op("MatMul", product, b.const(b.random(INNER, WIDTH)), outputs=["y"])
    kind = (onnx.TensorProto.FLOAT, ["tokens", WIDTH])
    onnx.save_model(
        b.model({"x": kind}, {"y": kind}), path, save_as_external_data=True, location="data", size_threshold=64
    )
    return both


def canonical(path: Path) -> tuple[onnx.ModelProto, Identified]:
    model = load_graph(path)
    Canonicalize()(model)
    found = identify(model)
    save_model(model, path.with_name("canonical.onnx"))
    return onnx.load(path.with_name("canonical.onnx")), found


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("form", FORMS)
def test_a_weight_in_parts_is_several_sites(tmp_path: Path, form: str, opset: int) -> None:
    both = write(tmp_path / "model.onnx", form, opset)
    model, found = canonical(tmp_path / "model.onnx")
    assert [site.role for site in found.sites] == [Role.GLU_GATE, Role.GLU_UP, Role.GLU_DOWN]
    assert [site.shape for site in found.sites] == [(WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)]
    assert found.unmatched == []
    assert [node.op_type for node in model.graph.node] == ["MatMul", "MatMul", "Sigmoid", "Mul", "Mul", "MatMul"]
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert len(held) == 3  # what was cut, and what it was cut by, is gone
    np.testing.assert_array_equal(np.hstack([held[node.input[1]] for node in model.graph.node[:2]]), both)
    x = np.random.default_rng(0).standard_normal((5, WIDTH)).astype(np.float32)
    before, after = (
        ort.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("model.onnx", "canonical.onnx")
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_what_depends_on_an_input_is_no_weight(tmp_path: Path) -> None:
    b = Builder()
    cut = b.op("Slice", b.const(b.random(WIDTH, INNER)), b.const([0], np.int64), "end", b.const([1], np.int64))
    b.op("MatMul", "x", cut, outputs=["y"])
    kind = onnx.TensorProto.FLOAT
    inputs = {"x": (kind, ["tokens", WIDTH]), "end": (onnx.TensorProto.INT64, [1])}
    onnx.save(b.model(inputs, {"y": (kind, ["tokens", "n"])}), tmp_path / "model.onnx")
    model, found = canonical(tmp_path / "model.onnx")
    assert found.sites == []
    assert [node.op_type for node in model.graph.node] == ["Slice", "MatMul"]


def test_inside_nested_functions(tmp_path: Path) -> None:
    """A GLU as a model-local function that calls one for its activation, and cuts its weight itself."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("blocks", 1)]
    silu = helper.make_function(
        "blocks", "Silu", ["x"], ["y"],
        [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])], opsets,
    )  # fmt: skip
    nodes = [
        helper.make_node("Split", ["w"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("MatMul", ["x", "a"], ["g"]), helper.make_node("MatMul", ["x", "b"], ["u"]),
        helper.make_node("Silu", ["g"], ["s"], domain="blocks"), helper.make_node("Mul", ["s", "u"], ["p"]),
        helper.make_node("MatMul", ["p", "d"], ["y"]),
    ]  # fmt: skip
    glu = helper.make_function("blocks", "Glu", ["x", "w", "d"], ["y"], nodes, opsets)
    b = Builder()
    value = "x"
    for layer in range(2):
        weights = [b.const(b.random(WIDTH, 2 * INNER)), b.const(b.random(INNER, WIDTH))]
        value = b.op("Glu", value, *weights, domain="blocks", outputs=["y"] if layer else 1)
    kind = (onnx.TensorProto.FLOAT, ["tokens", WIDTH])
    model = b.model({"x": kind}, {"y": kind})
    model.opset_import.append(helper.make_opsetid("blocks", 1))
    model.functions.extend([silu, glu])
    onnx.save(model, tmp_path / "model.onnx")
    _, found = canonical(tmp_path / "model.onnx")
    assert [(site.role, site.layer) for site in found.sites] == [
        (role, layer) for layer in range(2) for role in (Role.GLU_GATE, Role.GLU_UP, Role.GLU_DOWN)
    ]
