"""Refusals of adapters, and of folders with ONNX files in them, each made and put right as it says."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import save_file

from spq_graph.models.adapter import ADAPTER_CONFIG, base_of, check_adapter
from spq_graph.models.loading import load_causal_lm
from spq_graph.models.onnx_folder import onnx_in, onnx_of
from spq_graph.models.source import resolve
from tests.support.decoders import write_decoder
from tests.support.following import Told

follows = pytest.mark.follows
RANK = 4
RIGHT = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}


# ------------------------------------------------------------------------------------------------- adapters


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    return folder


def says(adapter: Path, **content: object) -> None:
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(content), encoding="utf-8")


@follows("models/adapter.py:base_of", "is not named")
def test_an_adapter_of_nothing(refusal: Told, adapter: Path, tiny_llama: Path) -> None:
    says(adapter, peft_type="LORA")
    with refusal:
        base_of(adapter)
    key = refusal.error.remedy.rpartition(' as "')[2].removesuffix('".')
    says(adapter, peft_type="LORA", **{key: str(tiny_llama)})
    assert base_of(adapter) == tiny_llama


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("somebody/llama", marks=follows("models/adapter.py:base_of", "hf download")),
        pytest.param("/nowhere/to be found", marks=follows("models/adapter.py:base_of", "Write its folder")),
    ],
)
def test_an_adapter_of_what_is_not_here(refusal: Told, adapter: Path, tiny_llama: Path, name: str) -> None:
    """What the download leaves is a folder, as the one that is written there."""
    says(adapter, base_model_name_or_path=name)
    with refusal:
        base_of(adapter)
    assert f"hf download {name} --local-dir DIR" in refusal.error.remedy or " " in name
    says(adapter, base_model_name_or_path=str(tiny_llama))
    assert base_of(adapter) == tiny_llama


def placed(adapter: Path, tiny_llama: Path, beside: bool) -> Path:
    """The adapter's folder: of its own, or the one that its model lies in."""
    return Path(shutil.copytree(tiny_llama, adapter, dirs_exist_ok=True)) if beside else adapter


def without(refusal: Told, folder: Path, tiny_llama: Path) -> None:
    """For the model without the adapter: this folder without what makes it an adapter, or the base model's."""
    if (folder / "config.json").is_file():
        assert refusal.error.remedy.endswith(f"take {ADAPTER_CONFIG} out of the folder.")
        (folder / ADAPTER_CONFIG).unlink()
        check_adapter(folder)
        assert resolve(str(folder)).kind == "folder"
    else:
        assert refusal.error.remedy.endswith("pass the folder of the base model.")
        check_adapter(tiny_llama)


def always_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param(True, marks=follows("models/adapter.py:check_adapter", "changes no weights", nth=0)),
        pytest.param(False, marks=follows("models/adapter.py:check_adapter", "changes no weights", nth=1)),
    ],
)
def test_an_adapter_of_prompts(
    refusal: Told, adapter: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    folder = placed(adapter, tiny_llama, beside)
    says(folder, peft_type="PREFIX_TUNING")
    with refusal:
        check_adapter(folder)
    always_installed(monkeypatch)
    says(folder, peft_type=refusal.error.remedy.partition(";")[0].split()[-1].upper())
    (folder / "adapter_model.safetensors").touch()
    check_adapter(folder)
    without(refusal, folder, tiny_llama)


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param(True, marks=follows("models/adapter.py:check_adapter", "without its weights", nth=0)),
        pytest.param(False, marks=follows("models/adapter.py:check_adapter", "without its weights", nth=1)),
    ],
)
def test_an_adapter_without_weights(
    refusal: Told, adapter: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    folder = placed(adapter, tiny_llama, beside)
    says(folder, peft_type="LORA")
    with refusal:
        check_adapter(folder)
    always_installed(monkeypatch)
    (folder / "adapter_model.safetensors").touch()
    check_adapter(folder)
    without(refusal, folder, tiny_llama)


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param(True, marks=follows("models/adapter.py:check_adapter", "is not installed", nth=0)),
        pytest.param(False, marks=follows("models/adapter.py:check_adapter", "is not installed", nth=1)),
    ],
)
def test_an_adapter_without_peft(
    refusal: Told, adapter: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    """As before and after peft is installed."""
    folder = placed(adapter, tiny_llama, beside)
    says(folder, peft_type="LORA")
    (folder / "adapter_model.safetensors").touch()
    with monkeypatch.context() as absent:
        absent.setattr(importlib.util, "find_spec", lambda _: None)
        with refusal:
            check_adapter(folder)
    assert refusal.error.remedy.startswith("pip install peft, and run this again")
    always_installed(monkeypatch)
    check_adapter(folder)
    without(refusal, folder, tiny_llama)


@pytest.mark.parametrize(
    ("content", "beside"),
    [
        pytest.param("{", True, marks=follows("models/adapter.py:_read", "not readable as JSON", nth=0)),
        pytest.param("{", False, marks=follows("models/adapter.py:_read", "not readable as JSON", nth=1)),
        pytest.param("[]", True, marks=follows("models/adapter.py:_read", "a JSON object is expected", nth=0)),
        pytest.param("[]", False, marks=follows("models/adapter.py:_read", "a JSON object is expected", nth=1)),
    ],
)
def test_a_broken_adapter(refusal: Told, adapter: Path, tiny_llama: Path, content: str, beside: bool) -> None:
    folder = placed(adapter, tiny_llama, beside)
    (folder / ADAPTER_CONFIG).write_text(content, encoding="utf-8")
    with refusal:
        base_of(folder) if not beside else check_adapter(folder)
    says(folder, base_model_name_or_path=str(tiny_llama))  # as it is downloaded again
    assert beside or base_of(folder) == tiny_llama
    without(refusal, folder, tiny_llama)


def lora(adapter: Path, base: Path, *, rank: int = RANK, layers: int = 2) -> Path:
    """One of rank 4 of every layer's query projection, whose configuration may say another rank, on another base."""
    places = {"target_modules": ["q_proj"], "base_model_name_or_path": str(base)}
    says(adapter, peft_type="LORA", task_type="CAUSAL_LM", r=rank, lora_alpha=8, **places)
    shapes = {"A": (RANK, 32), "B": (32, RANK)}
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight": np.ones(shape, np.float32)
        for layer in range(layers)
        for part, shape in shapes.items()
    }
    save_file(tensors, adapter / "adapter_model.safetensors")
    return adapter


@pytest.mark.parametrize(
    ("wrong", "beside"),
    [
        pytest.param({"rank": 3}, True, marks=follows("models/adapter.py:merged", "cannot be merged", nth=0)),
        pytest.param({"rank": 3}, False, marks=follows("models/adapter.py:merged", "cannot be merged", nth=1)),
        pytest.param({"layers": 3}, True, marks=follows("models/adapter.py:merged", "do not belong together", nth=0)),
        pytest.param({"layers": 3}, False, marks=follows("models/adapter.py:merged", "do not belong together", nth=1)),
    ],
)
def test_an_adapter_that_does_not_fit(
    refusal: Told, adapter: Path, tiny_llama: Path, wrong: dict[str, int], beside: bool
) -> None:
    """Merged where it was trained, the one that belongs to the model, or the model alone."""
    pytest.importorskip("peft")
    folder = placed(adapter, tiny_llama, beside)
    with refusal:
        load_causal_lm(lora(folder, tiny_llama, **wrong))
    whole = load_causal_lm(lora(folder, tiny_llama))
    whole.save_pretrained(adapter.parent / "merged")
    assert load_causal_lm(adapter.parent / "merged").state_dict().keys() == whole.state_dict().keys()
    without(refusal, folder, tiny_llama)


# ------------------------------------------------------------------------------------------------- ONNX in folders


@follows("models/onnx_folder.py:onnx_in")
def test_several_onnx_files(refusal: Told, tmp_path: Path) -> None:
    for name in ("decoder_model_merged.onnx", "decoder_model.onnx"):
        write_decoder(tmp_path / name, layers=1)
    with refusal:
        onnx_in(tmp_path)
    named = refusal.error.remedy.removeprefix("Pass the one that is meant, such as ").removesuffix(".")
    assert resolve(named).path == tmp_path / "decoder_model.onnx"


@follows("models/onnx_folder.py:onnx_of", "Pass the file itself")
def test_onnx_further_down(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    write_decoder(tmp_path / "onnx" / "model.onnx", layers=1)
    with refusal:
        onnx_of(tmp_path)
    named = Path(refusal.error.remedy.removeprefix("Pass the file itself, ").removesuffix("."))
    assert onnx_of(named) == named


@follows("models/onnx_folder.py:onnx_of", "Export it first")
def test_a_model_folder_for_a_file(refusal: Told, tiny_llama: Path, tmp_path: Path) -> None:
    """That it exports is what tests of the exporter see to."""
    with refusal:
        onnx_of(tiny_llama)
    write_decoder(tmp_path / "model.onnx", layers=1)  # an OUT of export
    assert onnx_of(tmp_path) == tmp_path / "model.onnx"


@follows("models/onnx_folder.py:onnx_of", "Pass an .onnx file")
def test_no_onnx_anywhere(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        onnx_of(tmp_path)
    file = write_decoder(tmp_path / "model.onnx", layers=1)
    assert onnx_of(tmp_path) == onnx_of(file) == file


@follows("models/source.py:weight_files", "The folder holds ONNX")
def test_a_configuration_beside_onnx(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(RIGHT), encoding="utf-8")
    (tmp_path / "onnx").mkdir()
    write_decoder(tmp_path / "onnx" / "decoder.onnx", layers=1)
    with refusal:
        resolve(str(tmp_path))
    named = refusal.error.remedy.removeprefix("The folder holds ONNX: pass the file itself, ").removesuffix(".")
    assert resolve(named).kind == "onnx"
