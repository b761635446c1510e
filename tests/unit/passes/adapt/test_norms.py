"""Norms as ONNX Runtime fuses them: the product with a reciprocal root becomes a quotient, and what must stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from spq_graph.passes.adapt.norms import DivideNorms
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES
from tests.support.graphs import Builder, Described, after
from tests.support.inserting import activations, applied, kernels, plan_for, run

WIDTH = 16
EPSILON = 0.25  # large enough to be seen in the result: ONNX Runtime has a default of its own
FEEDS = {"x": activations(WIDTH, WIDTH)}  # square, so that a mean along either axis fits


def norm(
    b: Builder,
    x: str,
    *,
    exponent: float = 2.0,
    averaged: str = "",
    swapped: bool = False,
    epsilon_first: bool = False,
    epsilon: Any = EPSILON,
    axis: int = -1,
    keepdims: int = 1,
    shared: str = "",
) -> str:
    """An RMSNorm and its weight. `averaged` is another value than x to take the mean of, `shared` a step read twice."""
    square = b.op("Pow", averaged or x, b.const(exponent, np.float32))
    mean = b.op("ReduceMean", square, b.const([axis], np.int64), keepdims=keepdims)
    small = b.const(epsilon, np.float32)
    root = b.op("Sqrt", b.op("Add", *([small, mean] if epsilon_first else [mean, small])))
    factor = b.op("Reciprocal", root)
    product = b.op("Mul", *([factor, x] if swapped else [x, factor]), name="the product")
    b.nodes[-1].metadata_props.add(key="kept", value="yes")
    if shared:
        product = b.op("Add", product, {"mean": mean, "root": root, "factor": factor}[shared])
    return str(b.op("Mul", b.const(1 + b.random(WIDTH)), product))


def model(b: Builder, output: str, *more: str, axes: int = 2) -> onnx.ModelProto:
    outputs: Described = {name: (TensorProto.FLOAT, [f"axis{n}" for n in range(axes)]) for name in (output, *more)}
    return b.model({"x": (TensorProto.FLOAT, ["tokens", WIDTH])}, outputs)


def divided(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    return after(DivideNorms(), proto)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_product_becomes_a_quotient(tmp_path: Path, swapped: bool) -> None:
    b = Builder()
    proto = model(b, norm(b, "x", swapped=swapped))
    result, modified = divided(proto)
    assert modified
    assert not DivideNorms()(ir.from_proto(result)).modified
    assert "Reciprocal" not in {node.op_type for node in result.graph.node}
    (quotient,) = (node for node in result.graph.node if node.op_type == "Div")
    (product,) = (node for node in proto.graph.node if node.name == "the product")
    assert (quotient.name, quotient.output) == (product.name, product.output)
    assert [(p.key, p.value) for p in quotient.metadata_props] == [("kept", "yes")]
    (tmp_path / "before.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "after.onnx").write_bytes(result.SerializeToString())
    assert kernels(tmp_path / "before.onnx")["SimplifiedLayerNormalization"] == 0
    assert kernels(tmp_path / "after.onnx") == {"SimplifiedLayerNormalization": 1}
    x = FEEDS["x"].astype(np.float64)
    weight = onnx.numpy_helper.to_array(next(t for t in proto.graph.initializer if t.dims == [WIDTH]))
    wanted = weight * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(run(result, FEEDS)[0], wanted, rtol=1e-6)


ODD: tuple[dict[str, Any], ...] = (
    {"exponent": 3.0},
    {"averaged": True},
    {"axis": 0},
    {"keepdims": 0},
    {"epsilon_first": True},
    {"epsilon": [[[EPSILON]]]},
    {"shared": "mean"},
    {"shared": "root"},
    {"shared": "factor"},
)


@pytest.mark.parametrize("kind", ODD, ids=str)
def test_what_is_no_norm_or_is_read_elsewhere_stays(kind: dict[str, Any]) -> None:
    b = Builder()
    other = {"averaged": b.op("Abs", "x")} if kind.get("averaged") else kind
    proto = model(b, norm(b, "x", **other), axes=3 if "epsilon" in kind else 2)
    result, modified = divided(proto)
    assert not modified
    np.testing.assert_array_equal(run(result, FEEDS)[0], run(proto, FEEDS)[0])


def test_a_root_that_the_graph_gives_stays() -> None:
    b = Builder()
    output = norm(b, "x")
    factor = next(node.output[0] for node in b.nodes if node.op_type == "Reciprocal")
    assert not divided(model(b, output, factor))[1]


def test_the_quotient_may_be_what_the_graph_gives() -> None:
    b = Builder()
    norm(b, "x")
    product = next(node.output[0] for node in b.nodes if node.name == "the product")
    del b.nodes[-1]
    result, modified = divided(model(b, product))
    assert modified
    assert [value.name for value in result.graph.output] == [product]


@pytest.mark.parametrize("target", PROFILES)
def test_where_it_pays(tmp_path: Path, target: str) -> None:
    """Targets of ONNX Runtime's own kernels get quotients; the others keep what the exporter wrote."""
    b = Builder()
    path = tmp_path / "model.onnx"
    onnx.save(model(b, b.linear(norm(b, "x"), WIDTH, WIDTH)), path)
    plan = plan_for(path, FEEDS, Precision.INT8, target=target)
    ops = [node.op_type for node in onnx.load(applied(path, plan)).graph.node]
    assert ("Reciprocal" in ops) is (target not in ("cpu", "cuda"))
