"""Which file a folder means, and what those are told whose folder means none."""

from __future__ import annotations

from pathlib import Path

import pytest

from spq_graph.models.onnx_folder import needs_export, onnx_in, onnx_of
from spq_graph.terms.errors import SourceError


def folder_of(tmp_path: Path, *names: str) -> Path:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "meant"),
    [
        (("model.onnx", "other.onnx", "config.json"), "model.onnx"),
        (("decoder.onnx", "config.json"), "decoder.onnx"),
        (("config.json", "model.safetensors", "model.onnx"), None),
        (("config.json", "pytorch_model.bin.index.json", "a.onnx", "b.onnx"), None),
        (("config.json", "onnx/model.onnx"), None),
    ],
)
def test_what_a_source_means(names: tuple[str, ...], meant: str | None, tmp_path: Path) -> None:
    found = onnx_in(folder_of(tmp_path, *names))
    assert (found.name if found is not None else None) == meant


def test_several_are_named_and_one_is_proposed(tmp_path: Path) -> None:
    names = ("decoder_model_merged.onnx", "decoder_with_past_model.onnx", "decoder_model.onnx")
    with pytest.raises(SourceError, match=r"holds 3 \.onnx files") as caught:
        onnx_of(folder_of(tmp_path, *names))
    assert str(tmp_path / "decoder_model.onnx") in caught.value.remedy


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (("config.json", "onnx/model_q4.onnx", "onnx/model.onnx"), "onnx/model.onnx"),
        (("config.json", "model.safetensors"), "spq-graph export"),
        (("notes.txt",), "Pass an .onnx file"),
    ],
)
def test_folders_without_a_model(names: tuple[str, ...], remedy: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no \.onnx file") as caught:
        onnx_of(folder_of(tmp_path, *names))
    assert remedy in caught.value.remedy


def test_files(tmp_path: Path) -> None:
    file = folder_of(tmp_path, "x.onnx") / "x.onnx"
    assert onnx_of(file) == file
    with pytest.raises(SourceError, match="no such file"):
        onnx_of(tmp_path / "y.onnx")


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("config.json", "model.safetensors"), True),
        (("adapter_config.json", "adapter_model.safetensors"), True),
        (("config.json", "model.safetensors", "model.onnx"), False),
        (("config.json", "other.onnx"), False),
        (("notes.txt",), False),
    ],
)
def test_what_is_exported_to_be_looked_at(names: tuple[str, ...], wanted: bool, tmp_path: Path) -> None:
    assert needs_export(folder_of(tmp_path, *names)) is wanted
