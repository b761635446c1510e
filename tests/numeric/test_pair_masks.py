"""A decoder that takes a mask over pairs of tokens says what one says that makes it of a mask over tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")

from spq_graph.runtime.sessions.session import Runner
from tests.support.command import done
from tests.support.decoders import random_ids, write_decoder, write_ids

FORMS = ("added", "added_in_half", "looks", "hides", "counted", "three_axes")
KINDS = {"added_in_half": TensorProto.FLOAT16, "looks": TensorProto.BOOL, "hides": TensorProto.BOOL}


def _chain(form: str) -> list[tuple[str, list[str], dict[str, object]]]:
    """Nodes from the mask to what is added to scores; what a node gives is read by the next as "<"."""
    squeezed: tuple[str, list[str], dict[str, object]] = ("Squeeze", ["attention_mask", "heads"], {})
    as_float: tuple[str, list[str], dict[str, object]] = ("Cast", ["<"], {"to": TensorProto.FLOAT})
    return {
        "added": [squeezed],
        "added_in_half": [squeezed, as_float],
        "looks": [squeezed, ("Where", ["<", "nothing", "low"], {})],
        "hides": [squeezed, ("Where", ["<", "low", "nothing"], {})],
        "counted": [squeezed, as_float, ("Sub", ["unit", "<"], {}), ("Mul", ["<", "low"], {})],
        "three_axes": [("Identity", ["attention_mask"], {})],
    }[form]


def write(path: Path, form: str) -> Path:
    """The plain decoder, whose bias is made of a mask in this form."""
    model = onnx.load(write_decoder(path, layers=1))
    graph = model.graph
    gone = {"length", "lengths", "square", "minus", "padding", "scaled", "row", "bias"}
    for node in [node for node in graph.node if node.name in gone]:
        graph.node.remove(node)
    low = np.array(-1e4, np.float32)
    constants = {"heads": np.array([1]), "low": low, "nothing": low * 0, "unit": low * 0 + 1}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    before = ""
    for number, (op_type, inputs, attributes) in enumerate(steps := _chain(form)):
        out = "bias.out" if number == len(steps) - 1 else f"mask.{number}"
        read = [before if name == "<" else name for name in inputs]
        graph.node.insert(number, helper.make_node(op_type, read, [out], name=f"mask.{number}", **attributes))
        before = out
    kind = KINDS.get(form, TensorProto.INT64 if form == "counted" else TensorProto.FLOAT)
    pairs = ["batch_size", "queries", "keys"] if form == "three_axes" else ["batch_size", 1, "queries", "keys"]
    graph.input[1].CopyFrom(helper.make_tensor_value_info("attention_mask", kind, pairs))
    del graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("form", FORMS)
def test_the_same_is_said(tmp_path: Path, form: str) -> None:
    ids, mask = random_ids(3, 12, seed=4), np.ones((3, 12), np.int64)
    mask[1, 7:] = 0
    expected = Runner(write_decoder(tmp_path / "plain.onnx", layers=1)).logits(ids, mask)
    found = Runner(write(tmp_path / "model.onnx", form)).logits(ids, mask)
    np.testing.assert_allclose(found[mask == 1], expected[mask == 1], rtol=1e-4, atol=1e-4)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("form", ["added", "looks"])
def test_it_is_quantized(tmp_path: Path, form: str) -> None:
    write_ids(tmp_path / "ids.npz")
    path, data = write(tmp_path / "model.onnx", form), ["--calibration", tmp_path / "ids.npz", "--no-eval"]
    found = done("quantize", path, "-o", tmp_path / "out", *data, "--window", 32, "--json").json
    assert found["plan"]["search"]["rule"] == "auto"
    assert found["plan"]["search"]["kl"] < 0.1
