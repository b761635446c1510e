"""Weights that nodes cut out of initializers, or put together from them, are weights of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.files.save import save_model
from spq_graph.passes.find.identify import Identified, identify
from spq_graph.terms.site import Role
from tests.support.graphs import Builder

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


def gathered(b: Builder, both: np.ndarray) -> tuple[str, str]:
    """Picked one by one from a stack of both, as indexing a tensor is exported."""
    stack = b.const(np.stack(np.split(both, 2, axis=1)))
    gate, up = (b.op("Gather", stack, b.const(index, np.int64)) for index in range(2))
    return gate, up


FORMS = {form.__name__: form for form in (split, slices, reshaped, gathered)}


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


def stacked(b: Builder, weight: np.ndarray) -> tuple[str, np.ndarray]:
    """Alone in a stack, as an einsum leaves it."""
    return b.const(weight[None]), weight


def put_apart(b: Builder, weight: np.ndarray) -> tuple[str, np.ndarray]:
    return b.op("Transpose", b.op("Unsqueeze", b.const(weight.T), b.const([0], np.int64)), perm=[0, 2, 1]), weight


def scaled(b: Builder, weight: np.ndarray) -> tuple[str, np.ndarray]:
    return b.op("Mul", b.const(weight), b.const(0.5, np.float32)), weight / 2


def normalized(b: Builder, weight: np.ndarray) -> tuple[str, np.ndarray]:
    """Weight normalization: a direction, and a length for each output."""
    stored, lengths = b.const(weight), np.abs(b.random(1, weight.shape[1]))
    norms = b.op("ReduceL2", stored, b.const([0], np.int64), keepdims=1)
    return b.op("Mul", b.op("Div", stored, norms), b.const(lengths)), weight / np.linalg.norm(weight, axis=0) * lengths


def of_low_rank(b: Builder, weight: np.ndarray) -> tuple[str, np.ndarray]:
    """With a term of low rank that has not been merged (LoRA, Hu et al., arXiv 2106.09685)."""
    down, up = b.random(weight.shape[0], 2), b.random(2, weight.shape[1])
    return b.op("Add", b.const(weight), b.op("MatMul", b.const(down), b.const(up))), weight + down @ up


def masked(b: Builder, weight: np.ndarray) -> tuple[str, np.ndarray]:
    """Pruned: a mask of truth values, which are no quantized weights."""
    mask = b.op("Cast", b.const(weight > 0), to=onnx.TensorProto.FLOAT)
    return b.op("Mul", b.const(weight), mask), weight * (weight > 0)


COMPUTED = {form.__name__: form for form in (stacked, put_apart, scaled, normalized, of_low_rank, masked)}


def glu(b: Builder, form: Callable[[Builder, np.ndarray], tuple[str, np.ndarray]]) -> list[np.ndarray]:
    """Two GLUs with a residual each, whose weights are made in this way; returns the weights."""
    made, value = [], "x"
    for layer in range(2):
        names = []
        for rows, columns in ((WIDTH, INNER), (WIDTH, INNER), (INNER, WIDTH)):
            name, weight = form(b, b.random(rows, columns))
            made.append(weight)
            names.append(name)
        gate, up = (b.op("MatMul", value, name) for name in names[:2])
        product = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
        value = b.op("Add", value, b.op("MatMul", product, names[2]), outputs=["y"] if layer else 1)
    return made


def write_computed(path: Path, form: str, axes: int = 3) -> list[np.ndarray]:
    b = Builder(18)
    made = glu(b, COMPUTED[form])
    shape = ["batch", "tokens", WIDTH][-axes:]
    kind = (onnx.TensorProto.FLOAT, shape)
    onnx.save(b.model({"x": kind}, {"y": (onnx.TensorProto.FLOAT, None)}), path)
    return made


@pytest.mark.parametrize("form", COMPUTED)
def test_a_computed_weight_is_a_site(tmp_path: Path, form: str) -> None:
    weights = write_computed(tmp_path / "model.onnx", form)
    model, found = canonical(tmp_path / "model.onnx")
    assert [site.role for site in found.sites] == 2 * [Role.GLU_GATE, Role.GLU_UP, Role.GLU_DOWN]
    assert found.unmatched == []
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert len(held) == 6
    for node, weight in zip((n for n in model.graph.node if n.op_type == "MatMul"), weights, strict=True):
        np.testing.assert_allclose(held[node.input[1]], weight, rtol=1e-6, atol=1e-7)
    x = np.random.default_rng(0).standard_normal((2, 5, WIDTH)).astype(np.float32)
    before, after = (
        ort.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for name in ("model.onnx", "canonical.onnx")
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_a_stack_of_one_stays_where_it_adds_an_axis(tmp_path: Path) -> None:
    write_computed(tmp_path / "model.onnx", "stacked", axes=2)
    _, found = canonical(tmp_path / "model.onnx")
    # Behind the first product there are as many axes as the weight has: what reads it is a site.
    assert [site.role for site in found.sites] == [Role.OTHER, Role.GLU_GATE, Role.GLU_UP, Role.GLU_DOWN]
    odd = [missed.reason for missed in found.unmatched if "operand" in missed.reason]
    assert odd == 2 * ["the constant operand has rank 3: not a linear layer"]


def test_a_stack_of_one_that_two_products_read(tmp_path: Path) -> None:
    """Each by the axes of what it multiplies."""
    b = Builder()
    weight = b.const(b.random(1, WIDTH, WIDTH))
    b.op("MatMul", "x", weight, outputs=["y"])
    b.op("MatMul", "rows", weight, outputs=["z"])
    kind = onnx.TensorProto.FLOAT
    inputs = {"x": (kind, ["batch", "tokens", WIDTH]), "rows": (kind, ["n", WIDTH])}
    model = b.model(inputs, {"y": (kind, ["batch", "tokens", WIDTH]), "z": (kind, [1, "n", WIDTH])})
    onnx.save(model, tmp_path / "model.onnx")
    after, found = canonical(tmp_path / "model.onnx")
    assert [(site.input, site.shape) for site in found.sites] == [("x", (WIDTH, WIDTH))]
    onnx.checker.check_model(after, full_check=True)
    assert sorted(len(tensor.dims) for tensor in after.graph.initializer) == [2, 3]


@pytest.mark.parametrize("early", [False, True], ids=["cast first", "zero point first"])
def test_what_is_computed_from_integers_is_left_alone_and_told(tmp_path: Path, early: bool) -> None:
    b = Builder()

    def quantized(b: Builder, weight: np.ndarray) -> tuple[str, np.ndarray]:
        codes = b.const(np.rint(weight * 100), np.int32)
        codes = b.op("Sub", codes, b.const(3, np.int32)) if early else codes
        return b.op("Mul", b.op("Cast", codes, to=onnx.TensorProto.FLOAT), b.const(0.01, np.float32)), weight

    glu(b, quantized)
    kind = (onnx.TensorProto.FLOAT, ["batch", "tokens", WIDTH])
    onnx.save(b.model({"x": kind}, {"y": kind}), tmp_path / "model.onnx")
    _, found = canonical(tmp_path / "model.onnx")
    assert found.sites == []
    reasons = [missed.reason for missed in found.unmatched if "weight" in missed.reason]
    assert len(reasons) == 6
    assert all(reason.startswith("its weight is computed ") for reason in reasons)
    assert early or all("from integers" in reason for reason in reasons)


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
        "blocks",
        "Silu",
        ["x"],
        ["y"],
        [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])],
        opsets,
    )
    nodes = [
        helper.make_node("Split", ["w"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("MatMul", ["x", "a"], ["g"]),
        helper.make_node("MatMul", ["x", "b"], ["u"]),
        helper.make_node("Silu", ["g"], ["s"], domain="blocks"),
        helper.make_node("Mul", ["s", "u"], ["p"]),
        helper.make_node("MatMul", ["p", "d"], ["y"]),
    ]
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
