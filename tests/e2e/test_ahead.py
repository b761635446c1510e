"""A dry run exports and unpacks nothing where headers tell the products, and says what it therefore cannot know."""

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
from tests.support.command import Case, done, spq
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
    monkeypatch.setattr("spq_graph.models.sizes._LAYERS", 1)
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


ALIKE = ("glu_blocks", "sites", "kept_at_most", "bits", "unmatched")
OF_OTHERS = "what the family does beside its products, and which of those are no sites: a plain decoder stands for it"
OF_GGUF = "whether transformers unpacks the file into a folder, with its types of weights and its rotary positions"
FEW = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FEW |= {"num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "pad_token_id": 0}
FAMILIES: dict[str, dict[str, Any]] = {
    "Gemma2": {"head_dim": 8, "sliding_window": 4},
    "Phi3": {},
    "Qwen2Moe": {
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    },
    "GptOss": {"head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 4},
}


def made(place: Path, family: str) -> Path:
    import torch
    import transformers

    config = getattr(transformers, f"{family}Config")(**FEW | FAMILIES[family])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(place)
    return place


COUNTS = {"Gemma2": (2, 14), "Phi3": (2, 8), "Qwen2Moe": (8, 26), "GptOss": (6, 20)}


@pytest.mark.usefixtures("unexported")
@pytest.mark.parametrize("family", FAMILIES)
def test_of_other_families_as_well(ids: Path, tmp_path: Path, family: str) -> None:
    """Of which products are known, and what else is in them is not."""
    start = time.process_time()
    found = done("quantize", made(tmp_path / "model", family), "-o", tmp_path / "out", "--dry-run", "--json").json
    assert time.process_time() - start < 5
    assert found["based_on"] == ["config.json", "model.safetensors"]
    assert OF_OTHERS in found["unchecked"]
    assert (found["glu_blocks"], found["sites"]) == COUNTS[family]


@pytest.mark.parametrize("family", ["Phi3", "Qwen2Moe"])
def test_of_others_it_says_what_the_export_says(
    ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    given = ("quantize", made(tmp_path / "model", family), "-o", tmp_path / "out", "--calibration", ids)
    found = done(*given, "--window", 32, "--dry-run", "--json").json
    monkeypatch.setattr(Order, "stand_in", lambda _: None)
    known = done(*given, "--window", 32, "--dry-run", "--json").json
    assert found["seconds"].keys() == known["seconds"].keys()
    assert {name: found[name] for name in ALIKE} == {name: known[name] for name in ALIKE}
    for name in ("source_mb", "mb_quantized_everywhere", "mb_at_most"):
        assert found[name] == pytest.approx(known[name], abs=0.06), name  # of which the graph itself is most


@pytest.fixture
def file(tmp_path: Path) -> Path:
    pytest.importorskip("gguf")
    from tests.support.gguf_files import llama, write_llama

    write_llama(tmp_path / "tiny.gguf", llama())
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize("data", ["ids", "text", "none"])
def test_of_a_gguf_as_well(file: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str) -> None:
    """Whose tokenizer is made where there is text to be read."""
    text = tmp_path / "text.txt"
    text.write_text("Hello!! all of you.\n" * 200)
    given: list[object] = {"ids": ["--calibration", ids], "text": ["--calibration", text], "none": []}[data]
    given += ["--window", 32, "--keep", "model.layers.1.mlp.down_proj", "--dry-run", "--json"]
    with monkeypatch.context() as patched:
        patched.setattr("spq_graph.models.gguf.unpack", lambda *_, **__: pytest.fail("it was unpacked"))
        start = time.process_time()
        found = done("quantize", file, "-o", tmp_path / "out", *given).json
        assert time.process_time() - start < 5
    assert found["based_on"] == ["tiny.gguf"]
    assert OF_GGUF in found["unchecked"]
    assert OF_OTHERS not in found["unchecked"]
    if data != "none":  # of which the export samples, to know what that takes
        monkeypatch.setattr(Order, "stand_in", lambda _: None)
        known = done("quantize", file, "-o", tmp_path / "out", *given).json
        assert found["seconds"].keys() == known["seconds"].keys()
        assert {name: found[name] for name in ALIKE} == {name: known[name] for name in ALIKE}
        for name in ("source_mb", "mb_quantized_everywhere", "mb_at_most"):
            assert found[name] == pytest.approx(known[name], rel=0.05), name


@pytest.mark.parametrize("wrong", ["pattern", "text", "vocabulary", "architecture", "cut"])
def test_of_a_gguf_it_refuses_what_the_run_refuses(file: Path, ids: Path, tmp_path: Path, wrong: str) -> None:
    more: list[object] = ["--calibration", ids]
    if wrong == "pattern":
        more += ["--keep", "model.layers.7.*"]
    elif wrong == "text":
        np.savez(tmp_path / "text.npz", input_ids=np.full((2, 8), 99))
        more += ["--text", tmp_path / "text.npz"]
    elif wrong == "vocabulary":
        from tests.support.gguf_files import llama, write_llama

        write_llama(file, llama(), tokens=None)
        (tmp_path / "text.txt").write_text("Hello!!")
        more += ["--text", tmp_path / "text.txt"]
    elif wrong == "architecture":
        file.write_bytes(file.read_bytes().replace(b"llama", b"rwkv7"))
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    run = ["quantize", file, "-o", tmp_path / "out", *more, "--quiet"]
    real, dry = spq(*run), spq(*run, "--dry-run")
    assert real.code != 0
    assert (dry.code, dry.out, dry.err) == (real.code, "", real.err)


@pytest.mark.parametrize("dry", [True, False])
def test_an_order_is_checked_once(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dry: bool) -> None:
    checked, check = [], Order.check
    monkeypatch.setattr(Order, "check", lambda order: checked.append(order) or check(order))
    given = ("quantize", case.model, "-o", tmp_path / "out", "--calibration", case.calibration, "--spike-ratio", 5)
    done(*given, *(["--dry-run"] if dry else []))
    assert len(checked) == 1


def test_what_holds_no_plain_layers_is_exported(
    tiny_llama: Path, ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as weights in a form that is not read."""
    import torch

    place: Path = tmp_path / "model"
    shutil.copytree(tiny_llama, place)
    held = {name: torch.tensor(array) for name, array in load_file(place / "model.safetensors").items()}
    torch.save(held, place / "pytorch_model.bin")
    (place / "model.safetensors").unlink()
    told = spq("quantize", place, "-o", tmp_path / "out", "--calibration", ids, "--dry-run", "--json")
    assert told.code == 0, told.err
    assert json.loads(told.out)["based_on"] == ["model.onnx"]
