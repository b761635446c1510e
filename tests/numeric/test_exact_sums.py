"""Integer products keep their sums on every processor: on x86 without VNNI the default keeps two of them in 16 bits."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from onnx import ModelProto, TensorProto, helper, numpy_helper

from spq_graph.runtime.sessions.session import open_session, session_options
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
def test_the_largest_codes(rows: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    draw = np.random.default_rng(rows)
    # Two products of the largest codes are 64,770; 16 bits hold 32,767.
    weight = draw.choice(np.array([-128, -127, 126, 127], np.int8), (DEPTH, COLUMNS))
    x = draw.integers(250, 256, (rows, DEPTH))
    session = open_session(product(weight).SerializeToString(), session_options(1), tmp_path_factory.getbasetemp())
    found = session.run(None, {"x": x.astype(np.float32)})[0]
    np.testing.assert_array_equal(found, x @ weight.astype(np.int64))
