"""Refusals of ONNX files, each made and put right as it says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.files import read
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.identify import identify
from spq_graph.passes.find.sound import refuse_broken_weights
from tests.support.decoders import write_decoder
from tests.support.following import Told

follows = pytest.mark.follows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_decoder(tmp_path / "model.onnx", layers=1, external=True)


@pytest.fixture
def data(model: Path) -> Path:
    """The file with its weights."""
    [data] = {
        model.parent / entry.value
        for t in onnx.load(model, load_external_data=False).graph.initializer
        for entry in t.external_data
        if entry.key == "location"
    }
    return data


def edited(model: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """The file after a change, its weights left where they are."""
    proto = onnx.load(model, load_external_data=False)
    change(proto)
    onnx.save(proto, model)


def again(refusal: Told, model: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """A file is refused after a change, and taken when it is exported, copied or downloaded again."""
    whole = model.read_bytes()
    edited(model, change)
    with refusal:
        load_graph(model)
    model.write_bytes(whole)
    assert len(load_graph(model).graph)


@follows("passes/files/read.py:load_graph", "no such file")
def test_no_file(refusal: Told, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusal:
        load_graph(Path("modle.onnx"))
    monkeypatch.chdir(model.parent)
    assert len(load_graph(Path("model.onnx")).graph)


@follows("passes/files/read.py:load_graph", "the file is empty")
def test_empty_file(refusal: Told, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with refusal:
        load_graph(tmp_path / "empty.onnx")
    shutil.copy(model, tmp_path / "empty.onnx")
    assert len(load_graph(tmp_path / "empty.onnx").graph)


@follows("passes/files/read.py:load_graph", "the file cannot be read")
def test_unreadable_file(refusal: Told, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a disk, or another's file, would have it, whatever right the tests themselves have."""

    def unreadable(path: Path) -> onnx.ModelProto:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as locked:
        locked.setattr(read, "load_mapped", unreadable)
        with refusal:
            load_graph(model)
    model.chmod(0o644)
    assert len(load_graph(model).graph)
    shutil.copytree(model.parent, tmp_path / "another")
    assert len(load_graph(tmp_path / "another" / model.name).graph)


@follows("passes/files/read.py:load_graph", "two nodes of the graph give")
def test_one_value_twice(refusal: Told, model: Path) -> None:
    again(refusal, model, lambda proto: proto.graph.node.append(proto.graph.node[-1]))


@follows("passes/files/read.py:load_graph", "not a valid ONNX file")
def test_cut_file(refusal: Told, model: Path) -> None:
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    with refusal:
        load_graph(model)
    model.write_bytes(whole)
    assert len(load_graph(model).graph)


def inside(proto: onnx.ModelProto) -> None:
    """A weight of its own in the file that says less than its shape wants."""
    tensor = numpy_helper.from_array(np.ones((4, 4), np.float32), "small")
    tensor.raw_data = tensor.raw_data[:-4]
    proto.graph.initializer.append(tensor)


@follows("passes/files/read.py:_check_size")
def test_small_weight(refusal: Told, model: Path) -> None:
    again(refusal, model, inside)


def moved_to(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value

    return change


@follows("passes/files/read.py:_check_external", "lies outside")
def test_data_elsewhere(refusal: Told, model: Path, data: Path) -> None:
    edited(model, moved_to(str(data)))
    with refusal:
        load_graph(model)
    edited(model, moved_to(data.name))
    assert len(load_graph(model).graph)


@follows("passes/files/read.py:_check_external", "is missing")
def test_data_missing(refusal: Told, model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    kept = data.rename(tmp_path / "elsewhere" / data.name)
    with refusal:
        load_graph(model)
    shutil.copy(kept, data)
    assert len(load_graph(model).graph)


@follows("passes/files/read.py:_check_external", "is a link")
def test_data_linked(refusal: Told, model: Path, data: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    model = model.rename(inner / model.name)
    (inner / data.name).symlink_to(data)
    with refusal:
        load_graph(model)
    leads_to = (inner / data.name).resolve()
    (inner / data.name).unlink()
    shutil.copy(leads_to, inner / data.name)
    assert len(load_graph(model).graph)


@follows("passes/files/read.py:_check_external", "is cut short")
def test_data_cut(refusal: Told, model: Path, data: Path) -> None:
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    with refusal:
        load_graph(model)
    data.write_bytes(whole)
    assert len(load_graph(model).graph)


def no_nodes(proto: onnx.ModelProto) -> None:
    del proto.graph.node[:]


def one_input_twice(proto: onnx.ModelProto) -> None:
    proto.graph.input.append(proto.graph.input[0])


def reads_nothing(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].input[0] = "nowhere"


def gives_nothing(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "nowhere"


def reads_itself(proto: onnx.ModelProto) -> None:
    first, last = proto.graph.node[0], proto.graph.node[-1]
    proto.graph.node.append(helper.make_node("Add", [first.output[0], last.output[0]], ["around"], name="around"))
    first.input[-1] = "around"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(no_nodes, marks=follows("passes/files/read.py:_check_links.broken", "the graph is empty")),
        pytest.param(one_input_twice, marks=follows("passes/files/read.py:_check_links.broken", "have the name")),
        pytest.param(reads_nothing, marks=follows("passes/files/read.py:_check_links.broken", "WHAT")),
        pytest.param(gives_nothing, marks=follows("passes/files/read.py:_check_links.broken", "WHAT")),
        pytest.param(reads_itself, marks=follows("passes/files/read.py:_check_links.broken", "has a cycle")),
    ],
)
def test_invalid_graphs(refusal: Told, model: Path, change: Callable[[onnx.ModelProto], None]) -> None:
    again(refusal, model, change)


def sparse_model(path: Path, *, dense: bool = False, external: bool = False, places: tuple[int, ...] = (1, 5)) -> Path:
    """A product with a weight of two numbers, stored sparse or not."""
    values = numpy_helper.from_array(np.array([1.0, 2.0], np.float32), "w")
    if external:
        values.data_location = TensorProto.EXTERNAL
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g", inputs, outputs)
    if dense:
        array = np.zeros(12, np.float32)
        array[list(places)] = 1, 2
        graph.initializer.append(numpy_helper.from_array(array.reshape(4, 3), "w"))
    else:
        at = numpy_helper.from_array(np.array(places))
        graph.sparse_initializer.append(helper.make_sparse_tensor(values, at, [4, 3]))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


@follows("passes/files/sparse.py:_dense", "lies in another file")
def test_sparse_elsewhere(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        load_graph(sparse_model(tmp_path / "model.onnx", external=True))
    ordinary = load_graph(sparse_model(tmp_path / "model.onnx", dense=True))
    assert ordinary.graph.initializers["w"].const_value is not None


@follows("passes/files/sparse.py:_dense", "is not valid")
def test_sparse_beyond_its_shape(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        load_graph(sparse_model(tmp_path / "model.onnx", places=(1, 12)))
    exported_again = load_graph(sparse_model(tmp_path / "model.onnx"))
    assert exported_again.graph.initializers["w"].const_value is not None


@follows("passes/canon/fold.py:_computed", "a weight cannot be computed from the constants of the graph")
def test_a_weight_looked_up_out_of_range(refusal: Told, tmp_path: Path) -> None:
    """Its index is computed from numbers of floating point, which are not looked at before the weight is read."""
    path, name = write_decoder(tmp_path / "model.onnx", layers=1), "layers.0.mlp.up_proj.weight"

    def look_up(model: onnx.ModelProto, index: float) -> None:
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        stack = numpy_helper.from_array(numpy_helper.to_array(weight)[None], "stack")
        model.graph.initializer.remove(weight)
        model.graph.initializer.extend([stack, numpy_helper.from_array(np.float32(index), "index")])
        cast = helper.make_node("Cast", ["index"], ["place"], to=TensorProto.INT64)
        model.graph.node.insert(0, helper.make_node("Gather", ["stack", "place"], [name], axis=0))
        model.graph.node.insert(0, cast)

    def read_all() -> int:
        graph = canonical(path)
        sites = identify(graph).sites
        refuse_broken_weights(graph, sites, "model.onnx")
        return len(sites)

    whole = path.read_bytes()
    edited(path, lambda model: look_up(model, 10_000.0))
    with refusal:
        read_all()
    path.write_bytes(whole)
    edited(path, lambda model: look_up(model, 0.0))
    assert read_all()
