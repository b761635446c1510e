"""What a graph gives whatever goes in, and which products give the same, is told from the graph alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.folded import constant_products, twins_of

Arrays = dict[str, np.ndarray]
R = np.random.default_rng(0)
W = R.normal(size=(4, 4)).astype(np.float32)
ZERO = np.zeros((4, 4), np.float32)


def graph(path: Path, nodes: list[onnx.NodeProto], constants: Arrays, opset: int = 21) -> Path:
    """A graph from x, float32 [n, 4], to y."""
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def n(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


GLU = [
    n("MatMul", "x G", "gate"),
    n("Sigmoid", "gate", "s"),
    n("Mul", "gate s", "act"),
    n("MatMul", "x U", "up"),
    n("Mul", "act up", "prod"),
    n("MatMul", "prod D", "y"),
]


@pytest.mark.parametrize(
    ("constants", "found"),
    [
        ({"G": W, "U": W, "D": W}, set()),
        ({"G": ZERO, "U": W, "D": W}, {"gate", "y"}),
        ({"G": W, "U": ZERO, "D": W}, {"up", "y"}),
        ({"G": W, "U": W, "D": ZERO}, {"y"}),
        ({"G": np.full((4, 4), 2.0, np.float32), "U": W, "D": W}, set()),
        ({"G": np.diag([0, 0, 0, 1]).astype(np.float32), "U": W, "D": W}, set()),
    ],
)
def test_what_is_multiplied_by_zero(tmp_path: Path, constants: Arrays, found: set[str]) -> None:
    assert constant_products(load_graph(graph(tmp_path / "m.onnx", GLU, constants))) == found


def test_what_follows_from_a_constant_is_one(tmp_path: Path) -> None:
    """A bias on zero, a norm of it, moves of it: the same for any tokens, but what the tokens are added to is not."""
    nodes = [
        n("MatMul", "x Z", "zero"),
        n("Add", "zero bias", "biased"),
        n("MatMul", "biased A", "behind"),
        n("Reshape", "zero shape", "moved"),
        n("MatMul", "moved B", "after"),
        n("Add", "behind x", "mixed"),
        n("MatMul", "mixed C", "y"),
    ]
    constants = {"Z": ZERO, "A": W, "B": W, "C": W, "bias": np.ones(4, np.float32), "shape": np.array([-1, 4])}
    found = constant_products(load_graph(graph(tmp_path / "m.onnx", nodes, constants)))
    assert found == {"zero", "behind", "after"}


def test_zero_is_zero_through_quantizers(tmp_path: Path) -> None:
    nodes = [
        n("DequantizeLinear", "codes scales points", "w", axis=1),
        n("MatMul", "x w", "zero"),
        n("QuantizeLinear", "zero s z", "q"),
        n("DequantizeLinear", "q s z", "dq"),
        n("MatMul", "dq A", "y"),
    ]
    constants: Arrays = {
        "codes": np.full((4, 4), 3, np.int8),
        "scales": np.array([1, 2, 3, 4], np.float32),
        "points": np.full(4, 3, np.int8),
        "s": np.float32(0.1),
        "z": np.uint8(7),
        "A": W,
    }
    path = graph(tmp_path / "m.onnx", nodes, {k: np.asarray(v) for k, v in constants.items()})
    assert constant_products(load_graph(path)) == {"zero", "y"}
    constants["points"] = np.full(4, 2, np.int8)
    path = graph(tmp_path / "other.onnx", nodes, {k: np.asarray(v) for k, v in constants.items()})
    assert constant_products(load_graph(path)) == frozenset()


def test_a_gemm_of_zero_with_a_bias_gives_that(tmp_path: Path) -> None:
    nodes = [n("Gemm", "x Z bias", "biased"), n("Gemm", "x Z x", "sum"), n("Add", "biased sum", "y")]
    constants = {"Z": ZERO, "bias": R.normal(size=4).astype(np.float32)}
    assert constant_products(load_graph(graph(tmp_path / "m.onnx", nodes, constants))) == {"biased"}


@pytest.mark.parametrize("shared", [True, False])
def test_twins_have_equal_operands_all_the_way(tmp_path: Path, shared: bool) -> None:
    nodes = [n("MatMul", "x A", "one"), n("MatMul", "x B", "other"), n("MatMul", "x C", "third")]
    nodes += [n("MatMul", "one D", "a"), n("MatMul", "other D", "b"), n("MatMul", "third D", "c")]
    nodes += [n("Sum", "a b c", "y")]
    if shared:
        nodes[1].input[1] = "A"
    constants = {"A": W, "B": W.copy(), "C": W + 1, "D": W}
    model = load_graph(graph(tmp_path / "m.onnx", nodes, constants))
    assert twins_of(model, ["one", "b", "third", "c"]) == {"one": ["other"], "b": ["a"], "third": [], "c": []}
