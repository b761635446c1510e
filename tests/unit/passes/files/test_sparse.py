"""Sparse initializers are read as what they stand for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

from spq_graph.passes.files.read import load_graph
from spq_graph.terms.errors import SourceError
from tests.support.graphs import Glu, glu_model


def sparse(indices: np.ndarray, values: np.ndarray, shape: list[int]) -> onnx.SparseTensorProto:
    return helper.make_sparse_tensor(numpy_helper.from_array(values, "w"), numpy_helper.from_array(indices), shape)


def saved(folder: Path, weight: onnx.SparseTensorProto, columns: int = 3) -> Path:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g", inputs, outputs)
    graph.sparse_initializer.append(weight)
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


FLAT = np.array([1, 5, 11])
PAIRS = np.array([[0, 1], [1, 2], [3, 2]])
VALUES = np.array([1.0, -2.0, 3.0], dtype=np.float32)


@pytest.mark.parametrize("indices", [FLAT, PAIRS])
def test_both_kinds_of_indices(tmp_path: Path, indices: np.ndarray) -> None:
    import onnxruntime as ort

    path = saved(tmp_path, sparse(indices, VALUES, [4, 3]))
    weight = load_graph(path).graph.initializers["w"].const_value
    assert weight is not None
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(weight.numpy(), np.vstack([session.run(None, {"x": row})[0] for row in unit_rows()]))


def unit_rows() -> list[np.ndarray]:
    return list(np.eye(4, dtype=np.float32)[:, None])


def test_in_a_large_file(tmp_path: Path) -> None:
    model = glu_model(Glu(width=128, inner=256))
    down = next(t for t in model.graph.initializer if list(t.dims) == [256, 128])
    dense = numpy_helper.to_array(down)
    kept = np.where(np.abs(dense) > 0.1, dense, 0)
    places = np.flatnonzero(kept)
    model.graph.initializer.remove(down)
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(kept.reshape(-1)[places], down.name),
            numpy_helper.from_array(places),
            list(dense.shape),
        )
    )
    onnx.save(model, tmp_path / "model.onnx")
    found = load_graph(tmp_path / "model.onnx").graph.initializers[down.name].const_value
    assert found is not None
    np.testing.assert_array_equal(found.numpy(), kept)


@pytest.mark.parametrize(
    ("indices", "shape"),
    [
        (np.array([1, 5, 12]), [4, 3]),
        (np.array([1, 5, -1]), [4, 3]),
        (np.array([1, 5]), [4, 3]),
        (np.array([[0, 1], [1, 2], [3, 3]]), [4, 3]),
        (FLAT, [4, -3]),
        (FLAT, [1 << 40, 1 << 40]),
    ],
)
def test_what_is_no_sparse_tensor_is_refused_by_name(tmp_path: Path, indices: np.ndarray, shape: list[int]) -> None:
    with pytest.raises(SourceError, match="sparse weight 'w' is not valid"):
        load_graph(saved(tmp_path, sparse(indices, VALUES, shape)))


@pytest.mark.parametrize("shape", [[2**31 - 1, 1], [2**40, 3], [2**14, 2**14]])
def test_a_few_numbers_are_no_giant(tmp_path: Path, shape: list[int]) -> None:
    """Nothing is allocated for it."""
    weight = sparse(np.array([0, 1, 2], np.int64), np.ones(3, np.float32), shape)
    with pytest.raises(SourceError, match=r"3 numbers of a tensor of .*, which takes \d+ bytes"):
        load_graph(saved(tmp_path, weight))
