"""The exporter's optimizer does no more than before in less time."""

from __future__ import annotations

from unittest import mock

import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxscript")

from onnxscript import optimizer
from onnxscript.rewriter.rules.common import slice_split_rule

from spq_graph.models.export import _slices_alone

HALVES = """<ir_version: 10, opset_import: ["" : 21]>
agraph (float[2, 3, 4] x) => (float[2, 3, 4] y)
<int64[1] zero = {0}, int64[1] two = {2}, int64[1] four = {4}, int64[1] last = {2}>
{ first = Slice(x, zero, two, last) second = Slice(x, two, four, last) minus = Neg(second)
  y = Concat<axis = 2>(minus, first) }"""


def halves() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(HALVES))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_two_slices_are_tried_as_one_split_and_nothing_else_is() -> None:
    usual, found = halves(), halves()
    optimizer.optimize_ir(usual, num_iterations=1)
    tried: list[str] = []
    match = slice_split_rule.match

    def counted(model: ir.Model, graph: ir.Graph, node: ir.Node, **options: object) -> object:
        tried.append(node.op_type)
        return match(model, graph, node, **options)

    with mock.patch.object(slice_split_rule, "match", counted), _slices_alone():
        optimizer.optimize_ir(found, num_iterations=1)
    assert set(tried) == {"Slice"}
    assert operators(found) == operators(usual)


def test_afterwards_the_rule_is_as_it_was() -> None:
    before = slice_split_rule.try_rewrite
    with pytest.raises(RuntimeError), _slices_alone():
        raise RuntimeError
    assert slice_split_rule.try_rewrite == before
    assert "try_rewrite" not in vars(slice_split_rule)
