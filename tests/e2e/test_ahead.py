"""A dry run of a model folder exports nothing where its family is known, and says what it therefore cannot know."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

from safetensors.numpy import load_file, save_file

from spq_graph.jobs.order import Order
from tests.support.command import done, spq
from tests.support.decoders import write_ids


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    return write_ids(tmp_path / "ids.npz", rows=40, length=32)


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spq_graph.models.export.export_folder", lambda *_, **__: pytest.fail("it was exported"))
    monkeypatch.setattr("spq_graph.models.loading.load_causal_lm", lambda *_, **__: pytest.fail("it was loaded"))


@pytest.mark.usefixtures("unexported")
@pytest.mark.parametrize("more", [(), ("--bits", 8, "--bits", 6), ("--keep", "model.layers.1.mlp.down_proj")])
def test_in_seconds(tiny_llama: Path, tmp_path: Path, more: tuple[object, ...]) -> None:
    """With text sampled from the model, too, which is not sampled for it. By processor time."""
    start = time.process_time()
    found = done("quantize", tiny_llama, "-o", tmp_path / "out", "--dry-run", "--json", *more).json
    assert time.process_time() - start < 5
    assert found["based_on"] == ["config.json", "model.safetensors"]
    assert "whether torch loads and exports the folder" in found["unchecked"]
    assert found["seconds"].keys() >= {"export", "sample", "calibrate", "decide at 8 bits", "apply"}
    assert found["seconds"]["export"] > 1
    assert found["expected_time"] == pytest.approx(sum(found["seconds"].values()), abs=0.2)


@pytest.mark.usefixtures("unexported")
def test_of_a_large_one_some_layers_stand_for_all(
    tiny_llama: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--calibration", ids, "--keep", "model.layers.1.mlp.down_proj", "--dry-run", "--json", "--window", 32)
    whole = done("quantize", tiny_llama, "-o", tmp_path / "out", *given).json
    monkeypatch.setattr("spq_graph.models.stand_in._OWN", 0)
    monkeypatch.setattr("spq_graph.models.stand_in_graph._LAYERS", 1)
    part = done("quantize", tiny_llama, "-o", tmp_path / "out", *given).json
    times = ("seconds", "expected_time", "of_which_ladder")
    assert {name: value for name, value in part.items() if name not in times} == {
        name: value for name, value in whole.items() if name not in times
    }
    assert part["seconds"].keys() == whole["seconds"].keys()
    # As of a trained model: candidates are measured, and branches and formats tried.
    assert part["seconds"]["decide at 8 bits"] > 2 * whole["seconds"]["decide at 8 bits"]


def test_what_it_says_is_what_the_export_says(
    tiny_llama: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = write_ids(tmp_path / "text.npz", rows=40, length=32, seed=1)
    given = ("--calibration", ids, "--text", text, "--window", 32, "--dry-run", "--json")
    found = done("quantize", tiny_llama, "-o", tmp_path / "out", *given).json
    monkeypatch.setattr(Order, "stand_in", lambda _: None)
    known = done("quantize", tiny_llama, "-o", tmp_path / "out", *given).json
    assert known["based_on"] == ["model.onnx"]
    assert known["unchecked"] == []
    assert found["seconds"].keys() == known["seconds"].keys()
    for name in ("glu_blocks", "sites", "kept_at_most", "bits", "unmatched"):
        assert found[name] == known[name], name
    for name in ("source_mb", "mb_quantized_everywhere", "mb_at_most"):
        assert found[name] == pytest.approx(known[name], rel=0.05), name


@pytest.mark.parametrize("wrong", ["text", "pattern", "weights", "window"])
def test_what_the_run_refuses_it_refuses(tiny_llama: Path, ids: Path, tmp_path: Path, wrong: str) -> None:
    """In the same words, be it by exporting after all."""
    place: Path = tmp_path / "model"
    shutil.copytree(tiny_llama, place)
    more: list[object] = []
    if wrong == "text":
        np.savez(tmp_path / "text.npz", input_ids=np.full((2, 8), 99))
        more = ["--text", tmp_path / "text.npz"]
    elif wrong == "pattern":
        more = ["--keep", "model.layers.7.*"]
    elif wrong == "window":
        more = ["--window", 4096]
    else:
        held = load_file(place / "model.safetensors")
        held["model.layers.1.mlp.up_proj.weight"] = np.full_like(held["model.layers.1.mlp.up_proj.weight"], np.nan)
        save_file(held, place / "model.safetensors", metadata={"format": "pt"})
    run = ["quantize", place, "-o", tmp_path / "out", "--calibration", ids, *more, "--quiet"]
    real, dry = spq(*run), spq(*run, "--dry-run")
    assert real.code != 0
    assert (dry.code, dry.out, dry.err) == (real.code, "", real.err)


def test_another_family_is_exported(
    tiny_llama: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place: Path = tmp_path / "model"
    shutil.copytree(tiny_llama, place)
    config: dict[str, Any] = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"model_type": "granite", "architectures": None}))
    told = spq("quantize", place, "-o", tmp_path / "out", "--calibration", ids, "--dry-run", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["based_on"] == ["model.onnx"]
