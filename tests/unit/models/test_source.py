"""What SOURCE resolves to, and that everything broken is refused by name."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spq_graph.models import source as module
from spq_graph.models.source import Source, resolve
from spq_graph.terms.errors import SourceError

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "max_position_embeddings": 128,
    "vocab_size": 64,
}


def safetensors(payload: int = 16, promised: int = 16) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [promised // 4], "data_offsets": [0, promised]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(payload)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    write(path, "config.json", CONFIG)
    write(path, "tokenizer.json", {"version": "1.0"})
    (path / "model.safetensors").write_bytes(safetensors())
    return path


def write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


def refusal(source: Path | str, tokenizer: Path | None = None) -> SourceError:
    with pytest.raises(SourceError) as caught:
        resolve(str(source), tokenizer)
    assert caught.value.where
    assert caught.value.remedy
    return caught.value


def test_folder(folder: Path) -> None:
    assert resolve(str(folder)) == Source(
        kind="folder",
        path=folder,
        origin="model",
        tokenizer=folder,
        bos_token_id=1,
        eos_token_id=2,
        max_length=128,
        vocab_size=64,
    )


def test_folder_without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    assert resolve(str(folder)).tokenizer is None


def test_reference_is_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REFERENCE", folder)
    found = resolve("reference")
    assert (found.path, found.origin) == (folder, "reference")


def test_onnx_file_with_tokenizer(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"onnx")
    assert resolve(str(file)) == Source(kind="onnx", path=file, origin="model.onnx")
    with_text = resolve(str(file), folder)
    assert (with_text.tokenizer, with_text.bos_token_id, with_text.vocab_size) == (folder, 1, 64)


def test_needs_no_torch() -> None:
    code = """
import sys, spq_graph.models.source, spq_graph.models.export, spq_graph.models.sample, spq_graph.models.plant
sys.exit(bool({"torch", "transformers"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0


@pytest.mark.parametrize(
    ("source", "what", "remedy"),
    [
        ("nowhere/at/all", "no such file or folder", "spelling"),
        ("missing.onnx", "no such file or folder", "spelling"),
        ("meta-llama/Llama-2-7b-hf", "no whole model of this id", "hf://meta-llama/Llama-2-7b-hf"),
    ],
)
def test_nothing_there(source: str, what: str, remedy: str) -> None:
    error = refusal(source)
    assert what in error.what
    assert remedy in error.remedy


def test_other_files_are_refused(folder: Path) -> None:
    assert "neither" in refusal(folder / "config.json").what


@pytest.mark.parametrize(("present", "remedy"), [("model.onnx", "pass the file itself"), ("x", "save_pre")])
def test_no_config(folder: Path, present: str, remedy: str) -> None:
    (folder / "config.json").unlink()
    (folder / present).write_text("{}")
    error = refusal(folder)
    assert error.what == "no config.json"
    assert remedy in error.remedy


@pytest.mark.parametrize(
    ("text", "what"), [("{", "not readable as JSON"), ("[1]", "not a list"), ("\xff", "not readable")]
)
def test_broken_config(folder: Path, text: str, what: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert what in refusal(folder).what


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "architectures is BertForMaskedLM"),
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": None}, "model_type is missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantized already (gptq)"),
    ],
)
def test_not_a_float_causal_lm(folder: Path, change: dict[str, Any], what: str) -> None:
    write(folder, "config.json", CONFIG | change)
    assert what in refusal(folder).what


def test_architectures_may_be_absent(folder: Path) -> None:
    write(folder, "config.json", {"model_type": "llama"})
    found = resolve(str(folder))
    assert (found.bos_token_id, found.max_length) == (None, None)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"1234", "header cannot be read"),
        (safetensors()[:20], "header cannot be read"),
        (safetensors(payload=8), "truncated: its header promises"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (struct.pack("<Q", 2) + b"[]", "header cannot be read"),
    ],
)
def test_broken_weights(folder: Path, content: bytes, what: str) -> None:
    (folder / "model.safetensors").write_bytes(content)
    error = refusal(folder)
    assert what in error.what
    assert error.where.endswith("model.safetensors")


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder).what
    (folder / "pytorch_model.bin").write_bytes(b"PK")
    assert resolve(str(folder)).kind == "folder"


def test_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    write(folder, "model.safetensors.index.json", {"weight_map": {"v": "a.safetensors", "w": "b.safetensors"}})
    assert "1 of 2 shards are missing: b.safetensors" in refusal(folder).what
    (folder / "b.safetensors").write_bytes(safetensors())
    assert resolve(str(folder)).kind == "folder"
    write(folder, "model.safetensors.index.json", {})
    assert "weight_map" in refusal(folder).what
    for wrong in (["a.safetensors"], {}, 5, "", "../a.safetensors", "/etc/passwd"):
        write(folder, "model.safetensors.index.json", {"weight_map": {"v": "a.safetensors", "w": wrong}})
        assert "names what is no file of this folder" in refusal(folder).what


def test_broken_tokenizer(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    assert "not readable as JSON" in refusal(folder).what
    assert "no tokenizer.json" in refusal(folder, tmp_path).what


def test_empty_onnx(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    assert refusal(tmp_path / "model.onnx").what == "the file is empty"


def test_architectures_that_are_one_text_are_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": "BertForMaskedLM"}')
    with pytest.raises(SourceError, match=r'architectures is "BertForMaskedLM", and a list'):
        resolve(str(tmp_path))


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a": ' + "9" * 5000 + "}"])
def test_a_configuration_that_json_cannot_read_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SourceError, match="not readable as JSON"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("name", ["caf\udce9.onnx", "a\0b.onnx"])
def test_a_path_that_is_no_text_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="the path is not UTF-8"):
        resolve(str(tmp_path / name))
