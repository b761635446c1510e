"""Refusals of what is no model folder, each made and put right as it says."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spq_graph.models import source as models
from spq_graph.models.source import resolve
from tests.conftest import write_tokenizer
from tests.support.decoders import write_decoder
from tests.support.following import Told

follows = pytest.mark.follows
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder as far as it is looked at before it is loaded: config, weights and tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_config(folder, architectures=["LlamaForCausalLM"], model_type="llama")
    save_file({"weight": np.ones(4, np.float32)}, folder / WEIGHTS)
    write_tokenizer(folder)
    return folder


def write_config(folder: Path, **config: object) -> None:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@follows("models/source.py:resolve")
def test_neither_folder_nor_onnx(refusal: Told, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"x")
    with refusal:
        resolve(str(tmp_path / "model.pt"))
    assert resolve(str(folder)).kind == "folder"
    assert resolve(str(write_decoder(tmp_path / "model.onnx", layers=1))).kind == "onnx"


@follows("models/source.py:_not_found", "the embedded reference model is missing")
def test_reference_missing(refusal: Told, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as away:
        away.setattr(models, "REFERENCE", tmp_path / "absent")
        with refusal:
            resolve("reference")
        assert resolve(str(folder)).kind == "folder"
    assert resolve("reference").origin == "reference"  # as an installation has it


@follows("models/source.py:_not_found", "no such file or folder")
def test_misspelled(refusal: Told, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusal:
        resolve("./modell")
    monkeypatch.chdir(folder.parent)
    assert resolve("./model").kind == "folder"


@follows("models/source.py:_config", "The folder holds ONNX")
def test_folder_of_onnx(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    write_decoder(tmp_path / "onnx" / "decoder.onnx", layers=1)
    with refusal:
        resolve(str(tmp_path))
    named = refusal.error.remedy.removeprefix("The folder holds ONNX: pass the file itself, ").removesuffix(".")
    assert resolve(named).kind == "onnx"


@follows("models/source.py:_config", "save_pretrained wrote")
def test_folder_of_nothing(refusal: Told, folder: Path, tmp_path: Path) -> None:
    with refusal:
        resolve(str(tmp_path))
    assert resolve(str(folder)).tokenizer == folder


@follows("models/config.py:_check_kind", "encoder-decoder")
def test_encoder_decoder(refusal: Told, folder: Path) -> None:
    write_config(folder, architectures=["T5ForConditionalGeneration"], model_type="t5", is_encoder_decoder=True)
    with refusal:
        resolve(str(folder))
    for name, kind in (("Llama", "llama"), ("Mistral", "mistral"), ("Qwen2", "qwen2"), ("Phi3", "phi3")):
        write_config(folder, architectures=[f"{name}ForCausalLM"], model_type=kind)
        assert name in refusal.error.remedy.replace("LLaMA", "Llama")
        assert resolve(str(folder)).kind == "folder"


@follows("models/config.py:_check_kind", "not a causal language model: architectures")
def test_no_decoder(refusal: Told, folder: Path) -> None:
    write_config(folder, architectures=["BertModel"], model_type="bert")
    with refusal:
        resolve(str(folder))
    write_config(folder, architectures=["GPT2LMHeadModel", "LlamaForCausalLM"], model_type="llama")
    assert resolve(str(folder)).kind == "folder"


@follows("models/config.py:_check_kind", "model_type is missing")
def test_no_model_type(refusal: Told, folder: Path) -> None:
    write_config(folder, architectures=["LlamaForCausalLM"])
    with refusal:
        resolve(str(folder))
    line = refusal.error.remedy.removeprefix("Add it, for example ").removesuffix(".")
    write_config(folder, architectures=["LlamaForCausalLM"], **json.loads(f"{{{line}}}"))
    assert resolve(str(folder)).kind == "folder"


@follows("models/leftover.py:quantized_already", "(HOW)")
def test_quantized(refusal: Told, folder: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    shutil.copytree(folder, original)
    write_config(
        folder, architectures=["LlamaForCausalLM"], model_type="llama", quantization_config={"quant_method": "gptq"}
    )
    with refusal:
        resolve(str(folder))
    assert resolve(str(original)).kind == "folder"


@follows("models/leftover.py:quantized_already", "there is")
def test_quantized_by_its_tensors(refusal: Told, folder: Path) -> None:
    original = (folder / WEIGHTS).read_bytes()
    save_file({"layers.0.mlp.up_proj.qweight": np.ones(4, np.int32)}, folder / WEIGHTS)
    with refusal:
        resolve(str(folder))
    (folder / WEIGHTS).write_bytes(original)
    assert resolve(str(folder)).kind == "folder"


@follows("models/source.py:weight_files", "Download")
def test_no_weights(refusal: Told, folder: Path, tmp_path: Path) -> None:
    shutil.move(folder / WEIGHTS, tmp_path / WEIGHTS)
    with refusal:
        resolve(str(folder))
    shutil.move(tmp_path / WEIGHTS, folder / WEIGHTS)
    assert resolve(str(folder)).kind == "folder"


def split_weights(folder: Path, shards: list[str]) -> None:
    """The weights in several files with an index, which names them all."""
    for number, name in enumerate(shards):
        save_file({f"weight{number}": np.ones(4, np.float32)}, folder / name)
    index = {"weight_map": {f"weight{number}": name for number, name in enumerate(shards)}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / WEIGHTS).unlink()


@follows("models/source.py:_shards", "weight_map")
def test_index_of_nothing(refusal: Told, folder: Path) -> None:
    split_weights(folder, ["a.safetensors", "b.safetensors"])
    index = folder / f"{WEIGHTS}.index.json"
    whole = index.read_bytes()
    index.write_text("{}", encoding="utf-8")
    with refusal:
        resolve(str(folder))
    index.write_bytes(whole)
    assert resolve(str(folder)).kind == "folder"


@follows("models/source.py:_shards", "shards are missing")
def test_missing_shards(refusal: Told, folder: Path, tmp_path: Path) -> None:
    split_weights(folder, ["a.safetensors", "b.safetensors"])
    shutil.move(folder / "b.safetensors", tmp_path / "b.safetensors")
    with refusal:
        resolve(str(folder))
    assert "1 of 2" in refusal.error.what
    shutil.move(tmp_path / "b.safetensors", folder / "b.safetensors")
    assert resolve(str(folder)).kind == "folder"


def damaged(refusal: Told, folder: Path, name: str, content: bytes) -> None:
    """With this content a file is refused, and written again it is taken."""
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    with refusal:
        resolve(str(folder))
    assert name in refusal.error.where
    (folder / name).write_bytes(whole)
    assert resolve(str(folder)).kind == "folder"


@follows("models/source.py:_check_not_empty", "the file is empty")
def test_empty_weights(refusal: Told, folder: Path) -> None:
    damaged(refusal, folder, WEIGHTS, b"")


@follows("models/source.py:_check_not_empty", "Git LFS")
def test_lfs_pointer(refusal: Told, folder: Path) -> None:
    """`git lfs pull` puts the file itself in the pointer's place."""
    damaged(refusal, folder, WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")


@follows("models/headers.py:_header", "its header cannot be read")
def test_no_header(refusal: Told, folder: Path) -> None:
    damaged(refusal, folder, WEIGHTS, struct.pack("<Q", 40) + b"no JSON")


@follows("models/headers.py:check_safetensors", "truncated: its header promises")
def test_cut_weights(refusal: Told, folder: Path) -> None:
    damaged(refusal, folder, WEIGHTS, (folder / WEIGHTS).read_bytes()[:-4])
    assert load_file(folder / WEIGHTS)["weight"].shape == (4,)


@follows("models/source.py:_tokenizer")
def test_no_tokenizer(refusal: Told, folder: Path, tmp_path: Path) -> None:
    with refusal:
        resolve(str(folder), tmp_path)
    assert resolve(str(folder), folder).tokenizer == folder
    transformers = pytest.importorskip("transformers")
    slow = transformers.AutoTokenizer.from_pretrained(folder)
    slow.save_pretrained(tmp_path / "converted")
    assert resolve(str(folder), tmp_path / "converted").tokenizer == tmp_path / "converted"


@follows("models/source.py:_read_object", "not readable as JSON")
def test_broken_config(refusal: Told, folder: Path) -> None:
    damaged(refusal, folder, "config.json", b'{"model_type": ')


@follows("models/source.py:_read_object", "a JSON object is expected")
def test_config_of_another_form(refusal: Told, folder: Path) -> None:
    damaged(refusal, folder, "config.json", b"[]")
