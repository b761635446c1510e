"""Refusals of malformed files, and what is said of faults, each made and put right as it says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("onnxruntime")

from spq_graph.models.source import resolve
from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.files.read import load_graph
from spq_graph.runtime.sessions.inputs import empty_past
from spq_graph.runtime.sessions.session import Decoder
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.decoders import write_decoder
from tests.support.following import Told

follows = pytest.mark.follows


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_decoder(tmp_path / "model.onnx", layers=1)


def again(refusal: Told, model: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """A file is refused after a change, and taken when the model is exported again."""
    whole, proto = model.read_bytes(), onnx.load(model)
    change(proto)
    model.write_bytes(proto.SerializeToString())
    with refusal:
        canonical(model)
    model.write_bytes(whole)
    assert len(canonical(model).graph)


def without_inputs(proto: onnx.ModelProto) -> None:
    node = next(node for node in proto.graph.node if node.op_type == "MatMul")
    del node.input[1:]


def with_constant(**fields: object) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(TensorProto(name="odd", **fields))

    return change


def placed_before_its_file(proto: onnx.ModelProto) -> None:
    tensor = TensorProto(name="odd", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "wei\0ghts"), ("offset", "0")):
        tensor.external_data.add(key=key, value=value)
    proto.graph.initializer.append(tensor)


def calls_itself(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("own", 1))
    opsets = [*proto.opset_import]
    inner = helper.make_node("Own", ["a"], ["b"], domain="own")
    proto.functions.append(helper.make_function("own", "Own", ["a"], ["b"], [inner], opsets))
    last = proto.graph.node[-1]
    last.output[0] = "before"
    proto.graph.node.append(helper.make_node("Own", ["before"], ["logits"], domain="own", name="own"))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(without_inputs, marks=follows("passes/base/wellformed.py:check_nodes", "the graph is invalid")),
        pytest.param(with_constant(dims=[2]), marks=follows("passes/files/read.py:_check_form")),
        pytest.param(
            with_constant(dims=[2], data_type=TensorProto.STRING, string_data=[b"a"]),
            marks=follows("passes/files/read.py:_other_count", "texts"),
        ),
        pytest.param(
            with_constant(dims=[9], data_type=TensorProto.FLOAT, float_data=[1.0]),
            marks=follows("passes/files/read.py:_other_count", "numbers"),
        ),
        pytest.param(
            placed_before_its_file, marks=follows("passes/files/read.py:_check_external", "the place of weight")
        ),
        pytest.param(calls_itself, marks=follows("passes/canon/canonicalize.py:InlineFunctions.call")),
    ],
    ids=["no inputs", "no type", "texts", "numbers", "place", "function"],
)
def test_malformed_graphs(refusal: Told, model: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    again(refusal, model, change)


@follows("passes/files/read.py:_check_texts")
def test_a_name_that_is_no_text(refusal: Told, model: Path) -> None:
    """Another name in its place, or the model exported again."""
    whole = model.read_bytes()
    model.write_bytes(whole.replace(b"layers.0.after_mlp", b"layers.0.after_ml\xff"))
    with refusal:
        load_graph(model)
    model.write_bytes(whole.replace(b"layers.0.after_mlp", b"layers.0.after_abc"))
    assert len(load_graph(model).graph)
    model.write_bytes(whole)
    assert len(load_graph(model).graph)


@follows("models/source.py:_check_text")
def test_a_path_that_is_no_text(refusal: Told, model: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.onnx"))
    shutil.copy(model, odd)
    with refusal:
        resolve(str(odd))
    assert resolve(str(odd.rename(tmp_path / "named.onnx"))).kind == "onnx"


@follows("runtime/sessions/inputs.py:empty_past", "has the shape")
def test_a_cache_of_senseless_sizes(refusal: Told) -> None:
    with refusal:
        empty_past("past", ["batch", -1, "past", 8], 1, np.float32, None)
    assert empty_past("past", ["batch", 4, "past", 8], 1, np.float32, None).shape == (1, 4, 0, 8)


@follows("runtime/sessions/session.py:Decoder.fixed_shape")
def test_a_length_beyond_everything(refusal: Told) -> None:
    def decoder(*sizes: int | str) -> Decoder:
        ids = SimpleNamespace(name="input_ids", type="tensor(int64)", shape=list(sizes))
        return Decoder(
            Path("model.onnx"), [ids], [SimpleNamespace(name="logits", type="tensor(float)", shape=[1, 1, 8])]
        )

    with refusal:
        assert decoder(1 << 40, 1 << 40).fixed_shape
    assert decoder("batch", "length").fixed_shape == (None, None)


@follows("spq_graph/cli/guard.py:errors_for_people")
def test_what_the_system_refuses(refusal: Told, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "somewhere")

    arguments = ["inspect", made.model]
    with monkeypatch.context() as locked:
        locked.setattr("spq_graph.jobs.inspect.inspect", refused)
        refusal.command(*arguments)
    done(*arguments)


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@follows("spq_graph/cli/faults.py:fault", "not enough memory")
def test_not_enough_memory(refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["calibrate", made.model, "-o", tmp_path / "ranges", "--calibration", made.data]
    with monkeypatch.context() as full:
        full.setattr("spq_graph.jobs.calibrate.calibrate", failing(MemoryError("1 GiB")))
        refusal.command(*arguments)
    done(*arguments)
    done(*arguments, "--memory-limit", 64)


@pytest.mark.parametrize(
    "writes",
    [
        pytest.param(
            True, marks=follows("spq_graph/cli/faults.py:fault", "with TOLD", outside="a report goes to us, by hand")
        ),
        pytest.param(
            False,
            marks=follows("spq_graph/cli/faults.py:fault", "with this message", outside="a report goes to us, by hand"),
        ),
    ],
)
def test_a_fault_of_ours(
    refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: bool
) -> None:
    """What is to be sent is there, and says where it happened."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path if writes else tmp_path / "absent"))
    monkeypatch.setattr("spq_graph.jobs.inspect.inspect", failing(KeyError("nobody foresaw")))
    refusal.command("inspect", made.model)
    if writes:
        file = Path(refusal.error.remedy.removeprefix("report it with ").partition(", and")[0])
        assert "KeyError" in file.read_text(encoding="utf-8")


@follows("passes/files/read.py:_check_links.broken", "WHAT")
def test_a_function_that_reads_nothing(refusal: Told, model: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.opset_import.append(helper.make_opsetid("own", 1))
        inner = helper.make_node("Identity", ["nowhere"], ["b"])
        opsets = [*proto.opset_import]
        proto.functions.append(helper.make_function("own", "Own", ["a"], ["b"], [inner], opsets))

    again(refusal, model, change)
