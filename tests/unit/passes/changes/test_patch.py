"""Zeroing a weight: the graph computes what one with that number at zero does, and the source keeps its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.base.run import run
from spq_graph.passes.changes.patch import ZeroWeights
from spq_graph.passes.files.save import save_model
from tests.support.command import contents
from tests.support.super_weights import COLUMN, DOWN, FORMS, INPUT, ROW, WEIGHT, Form, given, write_super_weight


@pytest.mark.parametrize("form", FORMS)
def test_it_is_as_if_the_file_had_a_zero_there(form: Form, tmp_path: Path) -> None:
    path = write_super_weight(tmp_path / "model.onnx", form)
    result = "rows" if form == "gemm" else f"{DOWN}.out"
    before = contents(tmp_path)
    model = canonical(path)
    run(model, [ZeroWeights({DOWN: [(ROW, COLUMN)]})])
    save_model(model, tmp_path / "zeroed.onnx")
    assert contents(path) == {name: digest for name, digest in before.items() if name == str(path)}
    planted, zeroed = given(path, value=result), given(tmp_path / "zeroed.onnx", value=result)
    without = given(write_super_weight(tmp_path / "without.onnx", form, weight=0.0), value=result)
    np.testing.assert_array_equal(zeroed, without)
    reads = given(path, value="layers.1.mlp.product.out")[0, COLUMN]
    assert reads == pytest.approx(INPUT, rel=0.1)
    assert planted[0, ROW] - zeroed[0, ROW] == pytest.approx(reads * WEIGHT, rel=1e-5)


def test_who_shares_the_weight_keeps_it(tmp_path: Path) -> None:
    path = write_super_weight(tmp_path / "model.onnx", "shared")
    model = canonical(path)
    run(model, [ZeroWeights({DOWN: [(ROW, COLUMN)]})])
    save_model(model, tmp_path / "zeroed.onnx")
    proto = onnx.load(tmp_path / "zeroed.onnx")
    reads = {node.name: node.input[1] for node in proto.graph.node if node.op_type == "MatMul"}
    held = {one.name: onnx.numpy_helper.to_array(one) for one in proto.graph.initializer}
    next_one = DOWN.replace("1", "2")
    assert held[reads[next_one]][COLUMN, ROW] == WEIGHT
    assert held[reads[DOWN]][COLUMN, ROW] == 0
    assert np.count_nonzero(held[reads[DOWN]] != held[reads[next_one]]) == 1


def test_nothing_to_zero_changes_nothing(tmp_path: Path) -> None:
    model = canonical(write_super_weight(tmp_path / "model.onnx"))
    assert not run(model, [ZeroWeights({}), ZeroWeights({DOWN: []})])
