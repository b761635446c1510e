"""Weights inside of an ONNX file are left there, and the graph is the same as when they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.files.mapped import Mapped, load_mapped
from spq_graph.passes.files.read import digest_of, files_of, load_graph
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.graphs import Glu

LARGE = Decoder(glu=Glu(width=128, inner=256), layers=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "model.onnx"
    onnx.save(decoder(LARGE), made)
    return made


def test_large_weights_stay_in_the_file(path: Path) -> None:
    found, expected = load_mapped(path), ir.load(path)
    kinds = {name: type(v.const_value) for name, v in found.graph.initializers.items()}
    assert Mapped in kinds.values()
    for name, value in expected.graph.initializers.items():
        tensor = found.graph.initializers[name].const_value
        assert tensor is not None
        assert value.const_value is not None
        assert kinds[name] is Mapped or tensor.nbytes <= 1 << 16
        np.testing.assert_array_equal(tensor.numpy(), value.const_value.numpy())
    assert [n.name for n in found.graph] == [n.name for n in expected.graph]
    assert {n.name: dict(n.metadata_props) for n in found.graph} == {
        n.name: dict(n.metadata_props) for n in expected.graph
    }


def test_a_saved_copy_is_the_same_model(path: Path, tmp_path: Path) -> None:
    ir.save(load_mapped(path), tmp_path / "copy.onnx")
    copy, expected = onnx.load(tmp_path / "copy.onnx"), onnx.load(path)
    for tensor, other in zip(copy.graph.initializer, expected.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor, str(tmp_path)), numpy_helper.to_array(other))


def test_the_file_counts_once(path: Path) -> None:
    assert files_of(path) == [path]
    assert digest_of(path).startswith("sha256:")
    assert len(load_graph(path).graph) > 10


def test_a_weight_of_the_wrong_size_is_named(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[200, 200], raw_data=bytes(4 * 200 * 199))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 200])],
        [value("y", TensorProto.FLOAT, ["n", 200])],
        [tensor],
    )
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(Exception, match="'w' holds 159200 bytes where its shape wants 160000"):
        load_graph(tmp_path / "model.onnx")


@settings(max_examples=60)
@given(cut=st.integers(0, 10**6), place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_damaged_file_is_refused_as_by_the_plain_reader(
    tmp_path_factory: pytest.TempPathFactory, cut: int, place: int, byte: int
) -> None:
    data = bytearray(decoder(LARGE).SerializeToString())
    data[place % 4096] = byte
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(bytes(data[: max(1 << 17, cut % len(data))]))

    def outcome(load: object) -> str:
        try:
            return str([node.op_type for node in load(path).graph])  # type: ignore[operator]
        except Exception as error:
            return type(error).__name__

    assert outcome(load_mapped) == outcome(ir.load)
