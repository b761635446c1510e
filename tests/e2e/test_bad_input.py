"""Bad input: a clear error with the right status, nothing left behind, nothing of the input touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

pytest.importorskip("onnxruntime")

from tests.conftest import write_tokenizer
from tests.support.command import contents, spq
from tests.support.decoders import VOCABULARY, random_ids, write_decoder, write_ids


def refused(arguments: list[Any], inputs: Path, outputs: Path, *messages: str, code: int = 1) -> None:
    """The command fails with this status and message, without a trace in either folder."""
    before = contents(inputs)
    result = spq(*arguments)
    text = " ".join(result.err.replace("│", " ").split())
    assert result.code == code, result.err
    assert result.out == ""
    for message in messages:
        assert message in text
    assert "Traceback" not in result.err
    assert contents(inputs) == before
    assert not list(outputs.iterdir())


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    write_decoder(folder / "model.onnx", layers=1, external=True)
    write_ids(folder / "ids.npz")
    return folder


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


def quantize(inputs: Path, outputs: Path, *more: object, model: str = "model.onnx") -> list[Any]:
    calibration = [] if "--calibration" in more else ["--calibration", inputs / "ids.npz"]
    return ["quantize", inputs / model, "-o", outputs / "out", "--no-eval", "--window", 32, *calibration, *more]


# ------------------------------------------------------------------------------------------------- ONNX files


def truncated(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(content[: len(content) // 2])


def noise(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(np.random.default_rng(0).bytes(4096))


def empty(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"")


def without_data(folder: Path) -> None:
    (folder / "model.onnx.data").unlink()


def short_data(folder: Path) -> None:
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])


def escaping_data(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for entry in (e for tensor in model.graph.initializer for e in tensor.external_data if e.key == "location"):
        entry.value = "../secret.data"
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def dangling(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    model.graph.node[-1].input[0] = "nothing"
    onnx.save(model, folder / "model.onnx")


def without_glu(folder: Path) -> None:
    write_decoder(folder / "model.onnx", layers=1, glu=False)


def picture(folder: Path) -> None:
    """A perceptron: it has products with constant weights, but reads no token ids."""
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, folder / "model.onnx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "not a valid ONNX file"),
        (noise, "not a valid ONNX file"),
        (empty, "empty"),
        (without_data, "external data 'model.onnx.data' is missing"),
        (short_data, "external data 'model.onnx.data' is cut short"),
        (escaping_data, "lies outside of the model's folder"),
        (dangling, "which nothing produces"),
        (without_glu, "no GLU block was found"),
        (picture, "no GLU block was found"),
    ],
)
def test_onnx_files(inputs: Path, outputs: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(inputs)
    refused(quantize(inputs, outputs), inputs, outputs, message)


def test_no_glu_on_request(inputs: Path, outputs: Path) -> None:
    without_glu(inputs)
    assert spq(*quantize(inputs, outputs, "--allow-no-glu", "--spike-ratio", 50)).code == 0


def test_what_reads_no_token_ids(inputs: Path, outputs: Path) -> None:
    picture(inputs)
    refused(quantize(inputs, outputs, "--allow-no-glu"), inputs, outputs, "input_ids")


def test_our_own_artifact_is_quantized_already(inputs: Path, outputs: Path) -> None:
    assert spq("quantize", inputs / "model.onnx", "-o", inputs / "out", "--calibration", inputs / "ids.npz").code == 0
    refused(quantize(inputs, outputs, model="out/model.onnx"), inputs, outputs, "quantized already", "DequantizeLinear")


def test_a_weight_that_is_not_finite_is_named_by_its_site(inputs: Path, outputs: Path) -> None:
    write_decoder(inputs / "model.onnx", broken_layer=1)
    refused(quantize(inputs, outputs), inputs, outputs, "NaN or infinite", "of layers.1.mlp.gate_proj")


def test_no_such_source(inputs: Path, outputs: Path) -> None:
    for name in ("absent.onnx", "absent"):
        refused(quantize(inputs, outputs, model=name), inputs, outputs, name)


# ---------------------------------------------------------------------------------------------- data


def data_file(folder: Path, name: str) -> Path:
    """A file of calibration data that is wrong in one way."""
    path = folder / name
    ids = random_ids(4, 32)
    match path.stem:
        case "outside":
            np.savez(path, input_ids=np.where(ids == ids.max(), VOCABULARY, ids))
        case "negative":
            np.savez(path, input_ids=-ids)
        case "floats":
            np.savez(path, input_ids=ids.astype(np.float32))
        case "norows":
            np.savez(path, input_ids=ids[:0])
        case "nozip":
            path.write_bytes(b"PK\x03\x04 no")
        case "empty":
            path.write_text(" \n")
        case "latin":
            path.write_bytes("w1 w2 é ".encode("latin-1") * 50)
        case "short":
            path.write_text("w1 w2 w3")
        case "notext":
            path.write_text('{"body": "w1"}')
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside.npz", f"outside the vocabulary of {VOCABULARY}"),
        ("negative.npz", "outside the vocabulary"),
        ("floats.npz", "float32"),
        ("norows.npz", "rows"),
        ("nozip.npz", "not a readable .npz"),
        ("empty.txt", "the text is empty"),
        ("latin.txt", "not UTF-8"),
        ("short.txt", "tokens to predict where"),
        ("notext.json", "document 0 is an object with body: no text"),
        ("absent.txt", "no such file"),
    ],
)
@pytest.mark.parametrize("option", ["--calibration", "--text"])
def test_data(inputs: Path, outputs: Path, name: str, message: str, option: str) -> None:
    write_tokenizer(inputs)
    arguments = quantize(inputs, outputs, "--tokenizer", inputs, option, data_file(inputs, name))
    arguments.remove("--no-eval")
    refused(arguments, inputs, outputs, message, name)


def test_text_without_a_tokenizer(inputs: Path, outputs: Path) -> None:
    (inputs / "text.txt").write_text("w1 w2 " * 100)
    arguments = quantize(inputs, outputs, "--calibration", inputs / "text.txt")
    refused(arguments, inputs, outputs, "text needs a tokenizer", "--tokenizer DIR", code=2)


@pytest.mark.parametrize("damage", ["absent", "broken"])
def test_tokenizer(inputs: Path, outputs: Path, damage: str) -> None:
    folder = inputs / "tokenizer"
    folder.mkdir()
    if damage == "broken":
        (folder / "tokenizer.json").write_text('{"version": "1.0"')
    refused(quantize(inputs, outputs, "--tokenizer", folder), inputs, outputs, "tokenizer")


# ---------------------------------------------------------------------------------------------- folders


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: edit_config(f, architectures=["BertModel"], model_type="bert"), "not a causal language model"),
        (lambda f: edit_config(f, quantization_config={"quant_method": "gptq", "bits": 4}), "quantized"),
        (lambda f: (f / "model.safetensors").unlink(), "weights"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-50]), "safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "LFS"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "tokenizer.json"),
    ],
    ids=["no config", "broken config", "no decoder", "quantized", "no weights", "cut weights", "LFS", "tokenizer"],
)
def test_folders(
    tiny_llama: Path, outputs: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    damage(folder)
    refused(["quantize", folder, "-o", outputs / "out", "--no-eval"], folder, outputs, message)


def test_folder_without_tokenizer_and_text(tiny_llama: Path, outputs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (tmp_path / "text.txt").write_text("w1 w2 " * 100)
    arguments = ["quantize", folder, "-o", outputs / "out", "--calibration", tmp_path / "text.txt"]
    refused(arguments, folder, outputs, "tokenizer", code=2)
