"""Folders of every kind through the verbs: exported aside, taken for the ONNX file in them, or refused by name."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

from tests.support.command import contents, done, spq  # noqa: E402


@pytest.fixture(scope="module")
def exported(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out: Path = tmp_path_factory.mktemp("exported") / "out"
    done("export", tiny_llama, "-o", out)
    return out


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("ids") / "ids.npz"
    np.savez(file, input_ids=np.random.default_rng(0).integers(3, 64, (4, 32)))
    return file


def test_a_hugging_face_folder_is_inspected_as_its_export(tiny_llama: Path, exported: Path, ids: Path) -> None:
    before = contents(tiny_llama)
    arguments = ("--calibration", ids, "--window", 32, "--json")
    found, known = (done("inspect", folder, *arguments).json for folder in (tiny_llama, exported))
    assert found["path"] == str(tiny_llama)
    assert found["glu_blocks"] == known["glu_blocks"] == 2
    assert found["sites"] == known["sites"]
    assert all(site["measured"]["max"] for site in found["sites"] if site["role"] != "embedding")
    assert contents(tiny_llama) == before
    assert {s["key"] for s in done("inspect", tiny_llama, "--json").json["sites"]} == {s["key"] for s in found["sites"]}


def test_what_export_wrote_is_a_source(exported: Path, ids: Path, tmp_path: Path) -> None:
    arguments = ("--calibration", ids, "--no-eval", "--spike-ratio", 50, "--window", 32, "--json")
    folder, file = (
        done("quantize", place, "-o", tmp_path / name, *arguments).json
        for place, name in ((exported, "a"), (exported / "model.onnx", "b"))
    )
    assert folder["plan"]["model"]["digest"] == file["plan"]["model"]["digest"]
    assert (tmp_path / "a" / "tokenizer.json").is_file()


def test_the_only_file_of_a_folder_is_meant(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "decoder"))
    (folder / "model.onnx").rename(folder / "decoder.onnx")
    assert done("inspect", folder, "--json").json["glu_blocks"] == 2
    assert done("generate", folder, "--prompt", "w5 w6", "--max-new-tokens", 2, "--json").json


@pytest.mark.parametrize("verb", ["inspect", "quantize", "eval", "view", "diff"])
def test_several_files_are_named(verb: str, tmp_path: Path) -> None:
    for name in ("decoder_model.onnx", "decoder_model_merged.onnx"):
        (tmp_path / name).write_bytes(b"x")
    more = {"quantize": ["-o", tmp_path / "out"], "eval": ["--text", tmp_path / "t"], "diff": [tmp_path]}
    result = spq(verb, tmp_path, *more.get(verb, []))
    assert result.code == 1
    assert "holds 2 .onnx files" in result.err
    assert f"such as {tmp_path / 'decoder_model.onnx'}" in result.err


@pytest.mark.parametrize("verb", ["view", "diff"])
def test_where_nothing_is_exported_the_way_is_named(verb: str, tiny_llama: Path) -> None:
    result = spq(verb, tiny_llama, *([tiny_llama] if verb == "diff" else []))
    assert result.code == 1
    assert f"spq-graph export {tiny_llama} -o OUT" in result.err


def test_an_empty_folder(tmp_path: Path) -> None:
    result = spq("inspect", tmp_path)
    assert result.code == 1
    assert "holds no .onnx file" in result.err


def chatty(*_: object, **__: object) -> Any:
    """An exporter that fails, and says so in every way."""
    print("def forward(self): a traced program", file=sys.stderr)
    print("on standard output")
    warnings.warn("a warning", stacklevel=2)
    os.write(2, b"from C\x1b[2J\n")
    raise RuntimeError("Could not guard on data-dependent expression")


@pytest.mark.parametrize("arguments", [("export", "{}", "-o", "{}/out"), ("quantize", "{}", "-o", "{}/out")])
@pytest.mark.parametrize("verbose", ["", "before", "after"])
def test_libraries_talk_only_where_asked(
    arguments: tuple[str, ...],
    verbose: str,
    tiny_llama: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.export, "export", chatty)
    line = [part.format(tiny_llama) for part in arguments]
    line = ["--verbose", *line] if verbose == "before" else [*line, "--verbose"] if verbose else line
    result = spq(*line)
    assert result.code == 1
    assert result.out == ""
    assert capfd.readouterr() == ("", "")
    assert "the exporter failed: Could not guard" in result.err
    assert "--no-cache" not in result.err  # which fails alike
    assert "--verbose shows what the libraries printed" in result.err
    shown = ["a traced program" in result.err, "on standard output" in result.err, "from C\\x1b[2J" in result.err]
    assert shown == [bool(verbose)] * 3
    assert bool(verbose) or len(result.err.splitlines()) <= 5


def test_an_export_that_succeeds_says_nothing(
    tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = done("export", tiny_llama, "-o", tmp_path / "out", "--quiet")
    assert (result.out.count("\n"), result.err) == (1, "")
    assert capfd.readouterr() == ("", "")
