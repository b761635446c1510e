"""Which graphs may be run some tokens at a time: only those that give the same then."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from spq_graph.passes.pieces.tokenwise import is_tokenwise

HEAD = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
agraph (float[b, t, 4] x, int64[b, t] ids) => (float[b, t, n] y)
<float[4, 3] w = {WEIGHT}, float[3, 4] across = {WEIGHT}, float one = {0.5}, float[3] row = {1, 2, 3},
 float[1, 5, 1] by_place = {1, 2, 3, 4, 5}, float[4] norm = {1, 2, 1, 3}, uint8 zero = {9},
 float[5] of_tokens = {1, 2, 3, 4, 5}, uint8[5] zeros = {0, 0, 0, 0, 0},
 int64[1] last = {-1}, int64[1] second = {1}, int64[2] flat = {-1, 4}>
{ BODY }"""

TOKENWISE = {
    "a product": "y = MatMul(x, w)",
    "its weight turned over": "turned = Transpose<perm = [1, 0]>(across) y = MatMul(x, turned)",
    "behind a norm": "n = LayerNormalization(x, norm) y = MatMul(n, w)",
    "behind a norm written out": (
        "s = Mul(x, x) m = ReduceMean<keepdims = 1>(s, last) q = Sqrt(m) n = Div(x, q) y = MatMul(n, w)"
    ),
    "in front of a soft cap": "p = MatMul(x, w) d = Div(p, one) t = Tanh(d) y = Mul(t, one)",
    "with a bias": "p = MatMul(x, w) y = Add(p, row)",
    "quantized": "q = QuantizeLinear(x, one, zero) d = DequantizeLinear(q, one, zero) y = MatMul(d, w)",
    "in parts": "a = MatMul(x, w) b = MatMul(x, w) y = Concat<axis = -1>(a, b)",
}
NOT = {
    "it looks at other tokens": "m = ReduceMax<keepdims = 1>(x, second) n = Sub(x, m) y = MatMul(n, w)",
    "it looks at all tokens": "m = ReduceMax<keepdims = 1>(x) n = Sub(x, m) y = MatMul(n, w)",
    "one scale for all tokens": ("q, s, z = DynamicQuantizeLinear(x) d = DequantizeLinear(q, s, z) y = MatMul(d, w)"),
    "a scale for each place": (
        "q = QuantizeLinear<axis = 1>(x, of_tokens, zeros) d = DequantizeLinear<axis = 1>(q, of_tokens, zeros) "
        "y = MatMul(d, w)"
    ),
    "a constant for each place": "a = Add(x, by_place) y = MatMul(a, w)",
    "tokens on one axis": "f = Reshape(x, flat) y = MatMul(f, w)",
    "attention": "t = Transpose<perm = [0, 2, 1]>(x) a = MatMul(x, t) o = MatMul(a, x) y = MatMul(o, w)",
    "it reads the ids": "c = Cast<to = 1>(ids) u = Unsqueeze(c, last) a = Add(x, u) y = MatMul(a, w)",
}


def model(body: str) -> onnx.ModelProto:
    weight = ", ".join(str(number / 7 - 1) for number in range(12))
    return onnx.parser.parse_model(HEAD.replace("BODY", body).replace("WEIGHT", weight))


def as_segment(proto: onnx.ModelProto) -> list[ir.Node]:
    """The nodes where `x` is handed over, as a segment has it: no input of the graph."""
    graph = ir.from_proto(proto).graph
    x = next(value for value in graph.inputs if value.name == "x")
    graph.inputs.remove(x)
    return list(graph)


def run(proto: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    (y,) = ReferenceEvaluator(proto).run(None, feeds)
    return y


@pytest.mark.parametrize("case", TOKENWISE)
def test_what_computes_every_token_alone_gives_the_same_token_by_token(case: str) -> None:
    proto = model(TOKENWISE[case])
    assert is_tokenwise(as_segment(proto))
    x, ids = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32), np.ones((2, 5), np.int64)
    alone = [run(proto, {"x": x[:, at : at + 1], "ids": ids[:, :1]}) for at in range(5)]
    np.testing.assert_allclose(np.concatenate(alone, axis=1), run(proto, {"x": x, "ids": ids}), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", NOT)
def test_what_does_not_is_not_taken_for_it(case: str) -> None:
    assert not is_tokenwise(as_segment(model(NOT[case])))


def test_a_head_of_microsofts_domain() -> None:
    proto = model("y = com.microsoft.MatMulNBits<K = 4, N = 3, bits = 8, block_size = 16>(x, w, row)")
    assert is_tokenwise(as_segment(proto))
    proto = model("y = com.microsoft.FusedMatMul(x, w)")
    assert not is_tokenwise(as_segment(proto))
