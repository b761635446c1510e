"""Products that are no Sites, and the reason given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.find.identify import Identified, identify
from tests.support.graphs import Builder

FLOAT = onnx.TensorProto.FLOAT
Write = Callable[[Builder], str]


def found_in(model: onnx.ModelProto) -> Identified:
    onnx.checker.check_model(model)
    graph = ir.from_proto(model)
    Canonicalize()(graph)
    return identify(graph)


class TestNoSite:
    @pytest.mark.parametrize(
        ("write", "reason"),
        [
            (lambda b: b.op("MatMul", b.const(b.random(2, 2)), "x"), "the constant is the first operand"),
            (
                lambda b: b.op("Reshape", b.op("MatMul", "x", b.const(b.random(1, 4, 4))), b.const([-1, 4], np.int64)),
                "the constant operand has rank 3",
            ),
            (lambda b: b.op("Gemm", "x", b.const(b.random(4, 4)), alpha=0.5), "Gemm with unusual alpha"),
            (
                lambda b: b.op("Gemm", b.op("Transpose", "x"), b.const(b.random(4, 4)), transA=1),
                "Gemm with unusual transA",
            ),
            (
                lambda b: b.op("Cast", b.op("MatMul", b.op("Cast", "x", to=6), b.const(np.eye(4), np.int32)), to=1),
                "the constant operand holds INT32",
            ),
            (
                lambda b: b.op("MatMul", b.op("ReduceMax", "x", b.const([1], np.int64)), b.const(b.random(1, 4))),
                "an outer product with a vector",
            ),
            (
                lambda b: b.op("Add", "x", b.op("MatMul", b.const(b.random(2, 3)), b.const(b.random(3, 4)))),
                "both operands are constants",
            ),
            (lambda b: b.op("Einsum", "x", b.const(b.random(4, 4)), equation="ij,jk->ki"), "Einsum is not handled"),
        ],
    )
    def test_reason(self, write: Write, reason: str) -> None:
        b = Builder()
        b.op("Identity", write(b), outputs=["y"])
        found = found_in(b.model({"x": (FLOAT, [2, 4])}, {"y": (FLOAT, [2, 4])}))
        assert found.sites == []
        assert len(found.unmatched) == 1
        assert reason in found.unmatched[0].reason

    def test_inside_a_subgraph(self) -> None:
        inner = Builder()
        inner.op("MatMul", "x", inner.const(inner.random(4, 4)), outputs=["t"], name="hidden")
        then = inner.model({}, {"t": (FLOAT, [2, 4])}).graph
        other = onnx.helper.make_graph(
            [onnx.helper.make_node("Neg", ["x"], ["e"])],
            "e",
            [],
            [onnx.helper.make_tensor_value_info("e", FLOAT, [2, 4])],
        )
        b = Builder()
        b.op("If", "c", then_branch=then, else_branch=other, outputs=["y"], name="choice")
        found = found_in(b.model({"x": (FLOAT, [2, 4]), "c": (onnx.TensorProto.BOOL, [])}, {"y": (FLOAT, [2, 4])}))
        assert found.sites == []
        assert [(u.node, u.reason) for u in found.unmatched] == [("hidden", "inside a subgraph of If 'choice'")]

    def test_product_of_activations_goes_unmentioned(self) -> None:
        b = Builder()
        b.op("MatMul", "x", b.op("Transpose", "x"), outputs=["y"])
        found = found_in(b.model({"x": (FLOAT, [2, 4])}, {"y": (FLOAT, [2, 2])}))
        assert (found.sites, found.unmatched) == ([], [])
