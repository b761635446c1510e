"""Linear layers that an exporter left as Einsum: MatMuls of the same numbers, and what is no linear layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.canon.einsum import EinsumAsMatMul
from spq_graph.passes.find.identify import identify
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from tests.support.graphs import Array, Builder, Described
from tests.support.inserting import applied, kernels, plan_for, run

SIZES = dict(zip("bskndh", (2, 3, 6, 4, 8, 5), strict=True))


def shape_of(labels: str) -> list[int]:
    return [SIZES[label] for label in labels.replace("...", "bs").replace(" ", "")]


def single(equation: str, *, first: bool = False, known: bool = True) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """One Einsum of an activation and a constant, which is the first operand where asked; its axes are known or not."""
    b = Builder(seed=3)
    terms, _, result = equation.partition("->")
    labels = terms.split(",")
    of_weight, of_x = labels if first else labels[::-1]
    weight = b.const(b.random(*shape_of(of_weight)))
    x = "x" if known else b.op("Reshape", "x", "shape")
    b.op("Einsum", *((weight, x) if first else (x, weight)), equation=equation, name="layer", outputs=["y"])
    b.nodes[-1].metadata_props.add(key="kept", value="yes")
    symbols = [f"axis{n}" for n, _ in enumerate(shape_of(of_x)[:-1])]
    inputs: Described = {"x": (TensorProto.FLOAT, [*symbols, SIZES[of_x[-1]]])}
    feeds = {"x": b.random(*shape_of(of_x))}
    if not known:
        inputs["shape"] = (TensorProto.INT64, ["rank"])
        feeds["shape"] = np.array(shape_of(of_x), dtype=np.int64)
    model = b.model(inputs, {"y": (TensorProto.FLOAT, [f"out{n}" for n in range(len(shape_of(result)))])})
    return model, feeds


def rewritten(model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    graph = ir.from_proto(model)
    modified = EinsumAsMatMul()(graph).modified
    Canonicalize()(graph)
    result = ir.to_proto(graph)
    onnx.checker.check_model(result, full_check=True)
    return result, modified


LINEAR = {
    "bsk,kn->bsn": ["MatMul"],
    "bsk,nk->bsn": ["MatMul"],
    "... k, k n -> ... n": ["MatMul"],
    "...k,nk->...n": ["MatMul"],
    "k,kn->n": ["MatMul"],
    "bsd,dnh->bsnh": ["MatMul", "Reshape"],
    "bsd,ndh->bsnh": ["MatMul", "Reshape"],
    "bsnh,nhd->bsd": ["Reshape", "MatMul"],
    "bsnh,hnd->bsd": ["Reshape", "MatMul"],
    "...nh,nhd->...d": ["Reshape", "MatMul"],
    "bsnh,nhdk->bsdk": ["Reshape", "MatMul", "Reshape"],
}


@pytest.mark.parametrize("equation", LINEAR)
def test_a_linear_layer_is_one_product(equation: str) -> None:
    model, feeds = single(equation)
    result, modified = rewritten(model)
    assert modified
    ops = [node.op_type for node in result.graph.node]
    assert [op for op in ops if op != "Transpose"] == LINEAR[equation]
    (product,) = (node for node in result.graph.node if node.op_type == "MatMul")
    assert (product.name, [(p.key, p.value) for p in product.metadata_props]) == ("layer", [("kept", "yes")])
    assert [value.name for value in result.graph.output] == ["y"]
    assert len(identify(ir.from_proto(result)).sites) == 1
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).astype(np.float64)
    wanted = np.einsum(equation, feeds["x"].astype(np.float64), weight)
    for proto in (model, result):
        np.testing.assert_allclose(run(proto, feeds)[0], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("equation", ["kn,bsk->bsn", "dnh,bsd->bsnh"])
def test_the_weight_may_come_first(equation: str) -> None:
    model, feeds = single(equation, first=True)
    result, modified = rewritten(model)
    assert modified
    np.testing.assert_allclose(run(result, feeds)[0], run(model, feeds)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "equation",
    [
        "bks,kn->bsn",
        "bsk,kn->bns",
        "bsk,k->bs",
        "bsk,sk->bs",
        "bsk,kn->bs",
        "bsn,bk->bsnk",
        "nsk,nkd->nsd",
        "bsk,kk->bs",
    ],
)
def test_what_is_no_linear_layer_stays(equation: str) -> None:
    model, feeds = single(equation)
    result, modified = rewritten(model)
    assert not modified
    np.testing.assert_array_equal(run(result, feeds)[0], run(model, feeds)[0])
    (missed,) = identify(ir.from_proto(result)).unmatched
    assert (missed.node, missed.reason) == ("layer", "Einsum is not handled; it stays as it is")


def test_axes_that_are_to_be_counted_and_cannot_be() -> None:
    """Behind an ellipsis there may be any number of axes; one product needs no number, heads kept apart do."""
    assert rewritten(single("...k,kn->...n", known=False)[0])[1]
    assert not rewritten(single("...nh,nhd->...d", known=False)[0])[1]


def test_a_decoder_layer_all_in_einsum(tmp_path: Path) -> None:
    """Attention with heads apart and a GLU, as Flax writes them: every projection has its role and runs in integers."""
    heads, size, width, inner, length = 4, 8, 32, 48, 5
    b = Builder(seed=5)

    def layer(value: str, equation: str, *shape: int) -> str:
        return str(b.op("Einsum", value, b.const(b.random(*shape)), equation=equation))

    q, k, v = (layer("x", "btd,dnh->btnh", width, heads, size) for _ in range(3))
    scores = b.op("Einsum", b.op("Mul", q, b.number(size**-0.5)), k, equation="btnh,bsnh->bnts")
    mixed = b.op("Einsum", b.op("Softmax", scores, axis=-1), v, equation="bnts,bsnh->btnh")
    value = b.op("Add", "x", layer(mixed, "btnh,nhd->btd", heads, size, width))
    gate, up = (layer(value, "btd,df->btf", width, inner) for _ in range(2))
    product = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
    b.op("Add", value, layer(product, "btf,fd->btd", inner, width), outputs=["y"])
    kind = (TensorProto.FLOAT, ["batch", "tokens", width])
    path = tmp_path / "model.onnx"
    onnx.save(b.model({"x": kind}, {"y": kind}), path)
    graph = ir.from_proto(onnx.load(path))
    Canonicalize()(graph)
    found = identify(graph)
    wanted = [Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_O, Role.GLU_GATE, Role.GLU_UP, Role.GLU_DOWN]
    assert [site.role for site in found.sites] == wanted
    assert found.unmatched == []
    feeds = {"x": np.random.default_rng(0).standard_normal((2, length, width)).astype(np.float32)}
    made = applied(path, plan_for(path, feeds, Precision.INT8))
    assert kernels(made)["MatMulIntegerToFloat"] == len(found.sites)
    before, after = run(path, feeds)[0], run(made, feeds)[0]
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()
