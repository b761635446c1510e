"""Refusals of GGUF files, each made and put right as it says."""

from __future__ import annotations

import struct
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf", reason="reads and writes GGUF files: pip install gguf")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with it: pip install accelerate")

import gguf
import safetensors.numpy
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from docs.refusals import ROOT
from spq_graph.models import gguf as reading
from spq_graph.models.gguf import unpack
from spq_graph.models.source import resolve
from tests.support.following import Told
from tests.support.gguf_files import TOKENS, llama, write_llama

follows = pytest.mark.follows


@pytest.fixture(scope="module", name="llama")
def made() -> Any:
    return llama()


@pytest.fixture
def file(tmp_path: Path, llama: LlamaForCausalLM) -> Path:
    write_llama(tmp_path / "tiny.gguf", llama)
    return tmp_path / "tiny.gguf"


def unpacked(file: Path, out: Path, **options: Any) -> Path:
    out.mkdir(parents=True)
    unpack(file, out, **options)
    assert resolve(str(out)).vocab_size == len(TOKENS)
    return out


def converted_from(refusal: Told, llama: LlamaForCausalLM, folder: Path) -> None:
    """The Hugging Face folder is taken in the file's place."""
    assert "the Hugging Face folder that it was converted from" in refusal.error.remedy
    llama.save_pretrained(folder)
    source = resolve(str(folder))
    assert (source.kind, source.vocab_size) == ("folder", len(TOKENS))


@follows("models/gguf.py:only_one")
def test_several_in_a_folder(refusal: Told, file: Path, llama: LlamaForCausalLM) -> None:
    write_llama(file.with_name("other.gguf"), llama)
    with refusal:
        resolve(str(file.parent))
    named = refusal.error.remedy.removeprefix("Pass the one that is meant, for example ").removesuffix(".")
    assert resolve(named).kind == "gguf"


@follows("models/gguf.py:check_start")
@pytest.mark.parametrize("start", [b"PK\3\4\0\0\0\0", b"GGUF" + struct.pack("<I", 1)], ids=["another", "old"])
def test_what_does_not_begin_as_a_gguf(refusal: Told, file: Path, tmp_path: Path, start: bytes) -> None:
    """A newer one is written as the test's own is."""
    whole = file.read_bytes()
    file.write_bytes(start + whole[8:])
    with refusal:
        resolve(str(file))
    file.write_bytes(whole)
    assert resolve(str(file)).kind == "gguf"
    unpacked(file, tmp_path / "out")


@follows("models/gguf.py:_head")
def test_half_a_file(refusal: Told, file: Path, tmp_path: Path, llama: LlamaForCausalLM) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with refusal:
        unpack(file, tmp_path)
    write_llama(file, llama, quantization=getattr(gguf.GGMLQuantizationType, refusal.error.remedy[:-1].split()[-1]))
    unpacked(file, tmp_path / "other")
    file.write_bytes(whole)
    unpacked(file, tmp_path / "out")


@follows("models/gguf.py:_check_whole", "of a model")
def test_one_of_several_parts(refusal: Told, file: Path, tmp_path: Path, llama: LlamaForCausalLM) -> None:
    """What joins them writes one file, and says so in it."""
    write_llama(file, llama, keys={"split.count": 3, "split.no": 0})
    with refusal:
        unpack(file, tmp_path)
    write_llama(file, llama, keys={"split.count": 0})
    unpacked(file, tmp_path / "out")


@follows("models/gguf.py:_check_whole", "of type KIND")
def test_the_gguf_of_an_adapter(refusal: Told, file: Path, tmp_path: Path, llama: LlamaForCausalLM) -> None:
    write_llama(file.with_name("adapter.gguf"), llama, keys={"general.type": "adapter"})
    with refusal:
        unpack(file.with_name("adapter.gguf"), tmp_path)
    unpacked(file, tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(
            {"architecture": "wavtokenizer-dec"}, marks=follows("models/gguf.py:_check_whole", "architecture")
        ),
        pytest.param({"without": "blk.1.ffn_down.weight"}, marks=follows("models/gguf_weights.py:_check_all", "lacks")),
        pytest.param({"extra_tensor": True}, marks=follows("models/gguf_weights.py:_check_all", "another one")),
        pytest.param(
            {"keys": {"llama.rope.scaling.type": "longrope"}}, marks=follows("models/gguf_rope.py:_restore_scaling")
        ),
        pytest.param({"rope_factors": np.linspace(1, 3, 8)}, marks=follows("models/gguf_rope.py:_restore_llama3")),
    ],
    ids=["architecture", "lacks", "drops", "scaling", "factors"],
)
def test_what_would_be_another_model(
    refusal: Told, tmp_path: Path, llama: LlamaForCausalLM, change: dict[str, Any]
) -> None:
    write_llama(tmp_path / "odd.gguf", llama, **change)
    with refusal:
        unpack(tmp_path / "odd.gguf", tmp_path)
    converted_from(refusal, llama, tmp_path / "folder")


def of_extra(name: str) -> set[str]:
    """What an extra of the package installs."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return {needed.partition(">=")[0] for needed in extras[name]}


def failing(error: Exception) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@follows("models/gguf.py:unpack", "cannot read this GGUF")
def test_a_gguf_that_its_reader_fails_on(
    refusal: Told, file: Path, tmp_path: Path, llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_config", failing(KeyError("unheard of")))
    with refusal:
        unpack(file, tmp_path)
    converted_from(refusal, llama, tmp_path / "folder")


@follows("models/gguf.py:_write", "cannot be written")
def test_no_room_to_unpack(refusal: Told, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room made, or another folder."""
    with monkeypatch.context() as full:
        full.setattr(safetensors.numpy, "save_file", failing(safetensors.SafetensorError("I/O error: No space left")))
        with refusal:
            unpack(file, tmp_path)
    unpacked(file, tmp_path / "elsewhere" / "out")


@follows("models/gguf.py:_write_tokenizer")
def test_a_tokenizer_that_cannot_be_made(
    refusal: Told, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as odd:
        odd.setattr(AutoTokenizer, "from_pretrained", failing(KeyError("no such merges")))
        with refusal:
            unpack(file, tmp_path)
        unpacked(file, tmp_path / "out", tokenizer=False)  # as with --tokenizer DIR
    assert refusal.error.remedy.endswith("--tokenizer DIR.")


@follows("models/gguf.py:_require_packages", "which is not installed")
def test_without_its_packages(
    refusal: Told, file: Path, tmp_path: Path, llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as absent:
        absent.setattr(reading, "find_spec", lambda name: None)
        with refusal:
            unpack(file, tmp_path)
    extra = refusal.error.remedy.partition("[")[2].partition("]")[0]
    assert {"accelerate", "gguf"} <= of_extra(extra)
    unpacked(file, tmp_path / "out")
    converted_from(refusal, llama, tmp_path / "folder")


@follows("models/gguf.py:_require_packages", "is too old")
def test_with_an_old_transformers(
    refusal: Told, file: Path, tmp_path: Path, llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ("accelerate", "gguf")
    with monkeypatch.context() as old:
        old.setattr(reading, "find_spec", lambda name: name if name in known else None)
        with refusal:
            unpack(file, tmp_path)
    assert "transformers" in of_extra(refusal.error.remedy.partition("[")[2].partition("]")[0])
    unpacked(file, tmp_path / "out")
    converted_from(refusal, llama, tmp_path / "folder")
    assert AutoConfig.from_pretrained(tmp_path / "folder").vocab_size == len(TOKENS)
