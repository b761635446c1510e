"""Whether OpenVINO's compiler finishes: ways back from a product are many, and an end is near or not."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from spq_graph.passes.check.ways import endless_ways
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.graphs import Builder

FLOAT = onnx.TensorProto.FLOAT


def graph(times: int, *, op_type: str = "Add", reads: int = 2, beside: bool = False) -> ir.Model:
    """A product of what nodes made that read one value so many times; at last an input is added where it is beside."""
    b = Builder(21)
    value = "x"
    for _ in range(times):
        value = b.op(op_type, *reads * [value])
    if beside:
        value = b.op("Add", value, "x")
    b.op("MatMul", value, b.const(b.random(8, 8)), outputs=["y"], name="product")
    return ir.from_proto(b.model({"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, ["n", 8])}))


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Max"])
@pytest.mark.parametrize("times", [20, 70, 2000])
def test_values_that_are_read_twice(times: int, op_type: str) -> None:
    assert endless_ways(graph(times, op_type=op_type)) == "product"


def test_few_ways_or_an_end_that_is_near() -> None:
    assert endless_ways(graph(15)) is None
    assert endless_ways(graph(2000, op_type="Neg", reads=1)) is None
    assert endless_ways(graph(2000, beside=True)) is None


def test_norms_behind_each_other_with_products_between() -> None:
    """As decoders with a norm behind every sum have them: ways without end, and a product a few nodes away."""
    b = Builder(21)
    value = "x"
    for _ in range(40):
        for _ in range(2):
            total = b.op("Add", value, b.op("MatMul", value, b.const(b.random(8, 8))))
            value = b.op("Div", total, b.op("Sqrt", b.op("ReduceMean", b.op("Mul", total, total))))
    b.op("MatMul", value, b.const(b.random(8, 8)), outputs=["y"])
    assert endless_ways(ir.from_proto(b.model({"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, ["n", 8])}))) is None
    assert endless_ways(ir.from_proto(decoder(Decoder(layers=2)))) is None
