"""Graphs that are no decoder of their own: every verb says what they are, and what to pass in their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

pytest.importorskip("onnxruntime")

from tests.conftest import write_tokenizer as write_tokenizer_into
from tests.support.command import done, spq
from tests.support.decoders import write_decoder
from tests.support.nested import Nest, in_if, in_loop, in_scan, merged


def written(path: Path, nest: Nest) -> Path:
    model = onnx.load(write_decoder(path, layers=1))
    # What nodes inside of bodies are connected by must not be declared outside of them.
    del model.graph.value_info[:]
    onnx.save(nest(model), path)
    return path


def data(folder: Path) -> Path:
    np.savez(folder / "ids.npz", input_ids=np.random.default_rng(0).integers(2, 30, (20, 32)))
    return folder / "ids.npz"


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    write_tokenizer_into(folder)


def every_verb(model: Path, folder: Path) -> list[list[object]]:
    ids = data(folder)
    write_tokenizer(folder / "tokenizer")
    given = ["--calibration", ids, "--window", 32]
    return [
        ["quantize", model, "-o", folder / "out", "--no-eval", *given],
        ["quantize", model, "-o", folder / "out", "--no-eval", *given, "--allow-no-glu"],
        ["quantize", model, "-o", folder / "out", "--no-eval", *given, "--dry-run"],
        ["calibrate", model, "-o", folder / "r.json", *given],
        ["inspect", model, *given],
    ]


def run_verbs(model: Path, folder: Path) -> list[list[object]]:
    ids = data(folder)
    tokenizer = ["--tokenizer", folder / "tokenizer"]
    return [
        ["eval", model, "--text", ids, "--window", 32],
        ["generate", model, "--prompt", "x", *tokenizer],
        ["bench", model, "--length", 8, "--rounds", 1],
    ]


def test_a_merged_decoder(tmp_path: Path) -> None:
    model = written(tmp_path / "decoder_model_merged.onnx", merged)
    write_tokenizer(tmp_path / "tokenizer")
    for verb in (*every_verb(model, tmp_path), *run_verbs(model, tmp_path)):
        refused = spq(*verb)
        assert refused.code == 1, verb
        told = " ".join(refused.err.split())
        assert "this is a merged decoder" in told, verb
        assert "spq-graph export FOLDER" in told, verb
    assert "merged decoder" in done("inspect", model, "--json").json["note"]
    assert "merged decoder" in done("inspect", model).out


def test_a_merged_decoder_to_compare_with(tmp_path: Path) -> None:
    model, plain = written(tmp_path / "decoder_model_merged.onnx", merged), write_decoder(tmp_path / "m.onnx", layers=1)
    given = ["--against", model]
    for verb in (
        ["eval", plain, "--text", data(tmp_path), "--window", 32, *given],
        ["bench", plain, "--length", 8, "--rounds", 1, *given],
    ):
        refused = spq(*verb)
        assert refused.code == 1, verb
        assert "error: this is a merged decoder" in " ".join(refused.err.split()), verb


def test_what_was_merged_is_named_where_it_lies_beside(tmp_path: Path) -> None:
    model = written(tmp_path / "decoder_model_merged.onnx", merged)
    instead = write_decoder(tmp_path / "decoder_model.onnx", layers=1)
    verb = ["quantize", model, "-o", tmp_path / "out", "--no-eval", "--calibration", data(tmp_path), "--window", 32]
    assert f"pass {instead}" in " ".join(spq(*verb).err.split()).replace("/ ", "/")
    done("quantize", instead, *verb[2:])


@pytest.mark.parametrize(("nest", "place"), [(in_if, "If 'choose'"), (in_loop, "Loop"), (in_scan, "Scan")])
def test_layers_inside_of_others(tmp_path: Path, nest: Nest, place: str) -> None:
    model = written(tmp_path / "model.onnx", nest)
    for verb in every_verb(model, tmp_path):
        refused = spq(*verb)
        assert refused.code == 1, verb
        told = " ".join(refused.err.split())
        assert place in told, told
        assert "nothing is quantized" in told
        assert "spq-graph export FOLDER" in told
    assert place in done("inspect", model, "--json").json["note"]


def test_the_note_is_null_for_what_every_verb_takes(tmp_path: Path) -> None:
    assert done("inspect", write_decoder(tmp_path / "model.onnx", layers=1), "--json").json["note"] is None


@pytest.mark.parametrize("name", ["encoder_hidden_states", "past_key_values.0.encoder.key", "decoder_input_ids"])
def test_half_of_an_encoder_decoder_model(tmp_path: Path, name: str) -> None:
    model = onnx.load(write_decoder(tmp_path / "model.onnx", layers=1))
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "length", 32]))
    onnx.save(model, tmp_path / "model.onnx")
    write_tokenizer(tmp_path / "tokenizer")
    for verb in (*every_verb(tmp_path / "model.onnx", tmp_path), *run_verbs(tmp_path / "model.onnx", tmp_path)):
        refused = spq(*verb)
        assert refused.code == 1, verb
        assert name in refused.err
        assert "encoder-decoder model" in " ".join(refused.err.split())
        assert "decoder-only" in refused.err


def test_a_folder_of_onnx_files_is_answered_with_one_that_is_taken(tmp_path: Path) -> None:
    instead = write_decoder(tmp_path / "decoder_with_past_model.onnx", layers=1)
    written(tmp_path / "decoder_model_merged.onnx", merged)
    (tmp_path / "encoder_model.onnx").write_bytes(instead.read_bytes())
    verb = ["quantize", tmp_path, "-o", tmp_path / "out", "--no-eval", "--calibration", data(tmp_path), "--window", 32]
    assert f"Pass the one that is meant, such as {instead}." in " ".join(spq(*verb).err.split()).replace("/ ", "/")
