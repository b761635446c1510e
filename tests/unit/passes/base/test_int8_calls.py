"""Calls of spq::Int8MatMul that its library refuses are refused of the file, for the functions take some of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.base.int8_calls import wrong_gather_calls, wrong_int8_calls
from spq_graph.passes.base.own_calls import refuse_wrong_calls
from spq_graph.passes.forms.gather_function import gather_inputs, gather_name
from spq_graph.passes.forms.int8_function import Int8Kind
from spq_graph.passes.numbers.int8 import int8_panel_shape
from spq_graph.terms.errors import GraphError

K, N = 7, 35
KINDS = [Int8Kind(by_token, branch) for by_token in (False, True) for branch in (False, True)]
STATIC, BRANCH = Int8Kind(), Int8Kind(by_token=True, branch=True)


def call(kind: Int8Kind, inputs: int | None = None, attributes: Any = None, **tensors: Any) -> ir.Model:
    given = {
        "B": np.zeros(int8_panel_shape((K, N)), np.int8),
        "b_scale": np.ones(N, np.float32),
        "bias": np.zeros(1, np.float32),
        "a_scale": np.float32(0.5),
        "a_zero_point": np.uint8(3),
        "channels": np.array([0, K - 1]),
        "rows": np.zeros((2, N), np.float16),
        **tensors,
    }
    names = kind.inputs[:inputs]
    constants = [numpy_helper.from_array(np.asarray(given[name]), name) for name in names[1:]]
    sizes = {"K": K, "N": N, **(attributes or {})}
    node = helper.make_node(kind.op_type, names, ["Y"], "product", domain="spq", **sizes)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["t", size]) for name, size in (("A", K), ("Y", N))]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("spq", 1)]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.op_type)
def test_what_is_right(kind: Int8Kind) -> None:
    assert list(wrong_int8_calls(call(kind))) == []
    assert list(wrong_int8_calls(call(kind, b_scale=np.float32(1), bias=np.zeros(N, np.float32)))) == []


WRONG: dict[str, tuple[Int8Kind, dict[str, Any], str]] = {
    "K of -1": (STATIC, {"attributes": {"K": -1}}, "both positive; they are -1 and 35"),
    "K huge": (STATIC, {"attributes": {"K": 65_537}}, "at most 65536"),
    "K of no number": (STATIC, {"attributes": {"K": "7"}}, "they are 0 and 35"),
    "another K": (STATIC, {"attributes": {"K": 8}}, "its activation has 7 columns, and its weight K = 8 rows"),
    "another N": (STATIC, {"attributes": {"N": 70}}, "B is [2, 1, 2048], but K = 7 and N = 70 want panels"),
    "too few": (STATIC, {"inputs": 4}, "it has not the 6 inputs A, B, b_scale, bias, a_scale, a_zero_point"),
    "B unsigned": (STATIC, {"B": np.zeros(int8_panel_shape((K, N)), np.uint8)}, "B is UINT8, not INT8"),
    "b_scale [1, N]": (STATIC, {"b_scale": np.ones((1, N), np.float32)}, "b_scale is [1, 35]; it must hold one number"),
    "b_scale inf": (BRANCH, {"b_scale": np.float32(np.inf)}, "b_scale holds a number that is not finite"),
    "bias of float64": (BRANCH, {"bias": np.zeros(1)}, "bias is DOUBLE, not FLOAT"),
    "a_scale of 0": (STATIC, {"a_scale": np.float32(0)}, "a_scale is 0; it must be positive and finite"),
    "a_scale of two": (STATIC, {"a_scale": np.ones(2, np.float32)}, "a_scale must be a single number; it is [2]"),
    "channel -1": (BRANCH, {"channels": np.array([0, -1])}, "channel -1 is not below K = 7"),
    "channel K": (BRANCH, {"channels": np.array([0, K])}, "channel 7 is not below K = 7"),
    "rows": (BRANCH, {"rows": np.zeros((3, N), np.float16)}, "channels is [2] and rows is [3, 35]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong(name: str) -> None:
    kind, changes, words = WRONG[name]
    model = call(kind, **changes)
    [text] = wrong_int8_calls(model)
    assert text.startswith("product: ")
    assert words in text
    with pytest.raises(GraphError, match="spq::Int8MatMul: product"):
        refuse_wrong_calls(model, "model.onnx")


def lookup(inputs: int | None = None, attributes: Any = None, **tensors: Any) -> ir.Model:
    given = {
        "B": np.zeros(int8_panel_shape((K, N)), np.int8),
        "b_scale": np.ones(N, np.float32),
        "channels": np.array([0, K - 1]),
        "rows": np.zeros((2, N), np.float16),
        **tensors,
    }
    names = gather_inputs(branch=True)[:inputs]
    constants = [numpy_helper.from_array(np.asarray(given[name]), name) for name in names if name != "ids"]
    sizes = {"K": K, "N": N, **(attributes or {})}
    node = helper.make_node(gather_name(branch=True), names, ["Y"], "lookup", domain="spq", **sizes)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["t"])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["t", K])
    graph = helper.make_graph([node], "g", [ids], [y], constants)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("spq", 1)]))


WRONG_LOOKUPS: dict[str, tuple[dict[str, Any], str]] = {
    "N of 0": ({"attributes": {"N": 0}}, "both positive; they are 7 and 0"),
    "too few": ({"inputs": 4}, "it has not the 5 inputs B, ids, b_scale, channels, rows"),
    "another N": ({"attributes": {"N": 70}}, "B is [2, 1, 2048], but K = 7 and N = 70 want panels"),
    "b_scale": ({"b_scale": np.ones(3, np.float32)}, "b_scale is [3]; it must hold one number or N = 35"),
    "channel K": ({"channels": np.array([0, K])}, "channel 7 is not below K = 7"),
    "rows": ({"rows": np.zeros((3, N), np.float16)}, "channels is [2] and rows is [3, 35]"),
}


@pytest.mark.parametrize("name", WRONG_LOOKUPS)
def test_what_is_wrong_with_a_lookup(name: str) -> None:
    changes, words = WRONG_LOOKUPS[name]
    assert list(wrong_gather_calls(lookup())) == list(wrong_int8_calls(lookup(**changes))) == []
    [text] = wrong_gather_calls(lookup(**changes))
    assert words in text
    with pytest.raises(GraphError, match="spq::Int8Gather: lookup"):
        refuse_wrong_calls(lookup(**changes), "model.onnx")
