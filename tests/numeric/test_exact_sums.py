"""Integer products keep their sums on every processor: on x86 without VNNI the default keeps two of them in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from spq_graph.runtime.sessions.opening import open_session, session_options
from spq_graph.runtime.sessions.sums import exact_sums
from spq_graph.terms.kernels import EXACT_SUMS
from tests.support.graphs import Array

DEPTH, COLUMNS = 64, 32


def product(weight: Array) -> ModelProto:
    """X between Q/DQ (scale 1, zero point 0) times a weight of int8 with scale 1: integers in float32."""
    tensors = {
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
        "weight": weight,
        "ones": np.ones(weight.shape[1], np.float32),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "one", "zero"], ["rounded"]),
        helper.make_node("DequantizeLinear", ["weight", "ones"], ["dequantized"], axis=1),
        helper.make_node("MatMul", ["rounded", "dequantized"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy"]
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("rows", [1, 7, 128])
def test_the_largest_codes(rows: int, tmp_path: Path) -> None:
    draw = np.random.default_rng(rows)
    # Two products of the largest codes are 64,770; 16 bits hold 32,767.
    weight = draw.choice(np.array([-128, -127, 126, 127], np.int8), (DEPTH, COLUMNS))
    x = draw.integers(250, 256, (rows, DEPTH))
    session = open_session(product(weight).SerializeToString(), session_options(1), tmp_path)
    found = session.run(None, {"x": x.astype(np.float32)})[0]
    np.testing.assert_array_equal(found, x @ weight.astype(np.int64))


def blocked(weight: Array) -> ModelProto:
    """The same with its weight in two blocks, and nothing that says that X is quantized: no product in integers."""
    model = product(weight)
    ones, (*_, dequantize, multiply) = np.ones((2, weight.shape[1]), np.float32), model.graph.node
    next(t for t in model.graph.initializer if t.name == "ones").CopyFrom(numpy_helper.from_array(ones, "ones"))
    dequantize.attribute[0].i = 0
    dequantize.attribute.append(helper.make_attribute("block_size", weight.shape[0] // 2))
    multiply.input[0] = "x"
    del model.graph.node[:2]
    return model


def twice(weight: Array) -> ModelProto:
    """The same with its weight dequantized once more, for a second product."""
    model = product(weight)
    for node in list(model.graph.node)[2:]:
        again = model.graph.node.add()
        again.CopyFrom(node)
        again.output[0] += ".again"
        again.input[:] = [f"{name}.again" if name == "dequantized" else name for name in again.input]
    model.graph.output.append(helper.make_tensor_value_info("y.again", TensorProto.FLOAT, None))
    return model


@pytest.mark.parametrize("made", [blocked, twice])
def test_what_the_runtime_cannot_keep_exact_runs_all_the_same(
    made: Callable[[Array], ModelProto], tmp_path: Path
) -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (DEPTH, COLUMNS)).astype(np.int8)
    x = np.random.default_rng(1).integers(0, 3, (5, DEPTH))
    onnx.save(made(weight), tmp_path / "model.onnx")
    for model in (str(tmp_path / "model.onnx"), (tmp_path / "model.onnx").read_bytes()):
        session = open_session(model, session_options(1), tmp_path)
        for found in session.run(None, {"x": x.astype(np.float32)}):
            wanted = x @ weight.astype(np.int64)  # rounded where the runtime makes a product of eight bits of it
            np.testing.assert_allclose(found, wanted, rtol=0, atol=0.005 * np.abs(wanted).max())


@pytest.mark.parametrize("inside", ["graph", "function"])
def test_a_file_with_weights_in_blocks_is_known(inside: str, tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", blocked(np.ones((DEPTH, COLUMNS), np.int8))
    if inside == "function":
        nodes = list(model.graph.node)
        imports = [helper.make_opsetid("", 21)]
        given = ["x", *(tensor.name for tensor in model.graph.initializer)]
        model.functions.append(helper.make_function("here", "product", given, ["y"], nodes, imports))
        del model.graph.node[:]
        model.graph.node.append(helper.make_node("product", given, ["y"], domain="here"))
    onnx.save(model, path)
    assert exact_sums(path) == exact_sums(path.read_bytes()) == {}
    plain = product(np.ones((DEPTH, COLUMNS), np.int8))
    plain.doc_string = "block_size"
    onnx.save(plain, path)
    assert exact_sums(path) == exact_sums(path.read_bytes()) == {EXACT_SUMS: "1"}
