"""An adapter beside a model, or alone: merged where peft is at hand, and refused by name where it cannot be."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file

from spq_graph.models.adapter import check_adapter
from spq_graph.models.loading import load_causal_lm
from spq_graph.models.source import resolve
from spq_graph.terms.errors import SourceError
from tests.support.hub import cached, of_folder

RANK, ALPHA = 4, 8
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


@pytest.fixture
def base(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


def adapt(folder: Path, *, base: Path | str | None, layers: tuple[int, ...] = (0, 1), **keys: Any) -> Path:
    """Write a LoRA of every layer's q_proj into a folder."""
    folder.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj"],
        "base_model_name_or_path": str(base) if base is not None else None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config | keys))
    random = np.random.default_rng(0)
    save_file(
        {
            f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{part}.weight": random.normal(
                0, 0.2, (RANK, 32) if part == "A" else (32, RANK)
            ).astype(np.float32)
            for layer in layers
            for part in "AB"
        },
        folder / "adapter_model.safetensors",
    )
    return folder


def assert_merged(folder: Path, base: Path) -> None:
    """By hand: W + alpha / r · B A, and nothing else is touched."""
    before, update = load_file(base / "model.safetensors"), load_file(folder / "adapter_model.safetensors")
    remarks: list[str] = []
    after = dict(load_causal_lm(folder, remark=remarks.append).named_parameters())
    assert remarks == [f"the adapter in {folder.name} is merged into the weights"]
    assert after.keys() == before.keys()
    for name, weight in before.items():
        parts = [f"base_model.model.{name.removesuffix('.weight')}.lora_{part}.weight" for part in "BA"]
        added = ALPHA / RANK * update[parts[0]] @ update[parts[1]] if parts[0] in update else 0
        np.testing.assert_allclose(after[name].numpy(), weight + added, atol=1e-6)


@needs_peft
def test_beside_its_model(base: Path) -> None:
    assert_merged(adapt(base, base="x"), base)
    assert resolve(str(base)).base is None


@needs_peft
@pytest.mark.parametrize("name", ["absolute", "../base"])
def test_alone(base: Path, tmp_path: Path, name: str) -> None:
    folder = adapt(tmp_path / "adapter", base=base if name == "absolute" else name)
    assert_merged(folder, base)
    source = resolve(str(folder))
    assert (source.kind, source.origin, source.vocab_size) == ("folder", "adapter", 64)
    assert source.base is not None
    assert source.base.resolve() == base
    assert source.tokenizer == source.base


@needs_peft
@pytest.mark.parametrize(
    ("layers", "keys", "what"),
    [
        ((0, 1, 2), {}, r"2 tensors have no counterpart, .*layers\.2"),
        ((0,), {}, r"2 tensors have no counterpart, .*layers\.1"),
        ((0, 1), {"target_modules": ["absent"]}, "cannot be merged"),
        ((0, 1), {"r": 3}, "cannot be merged: size mismatch"),
    ],
    ids=["too many", "too few", "no such place", "other rank"],
)
def test_of_another_model(layers: tuple[int, ...], keys: dict[str, Any], what: str, base: Path, tmp_path: Path) -> None:
    folder = adapt(tmp_path / "adapter", base=base, layers=layers, **keys)
    with pytest.raises(SourceError, match=what) as caught:
        load_causal_lm(folder)
    assert "pass the folder of the base model" in caught.value.remedy


def test_without_peft(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"an adapter \(LORA\) that is not merged") as caught:
        resolve(str(adapt(base, base="x")))
    assert caught.value.remedy.startswith("pip install peft")
    (base / "adapter_config.json").unlink()  # the other half of the remedy
    assert resolve(str(base)).kind == "folder"


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        (None, "not named", "base_model_name_or_path"),
        ("somebody/base-7b", "not on this machine", "hf download somebody/base-7b --local-dir DIR"),
        ("/nowhere/base", "not on this machine", "Write its folder there"),
        ("~nobody/base", "not on this machine", "Write its folder there"),
        ("a" * 70_000, "not on this machine", "--local-dir DIR"),
    ],
)
def test_a_base_that_is_not_there(name: str | None, what: str, remedy: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        resolve(str(adapt(tmp_path / "adapter", base=name)))
    assert remedy in caught.value.remedy
    assert len(str(caught.value)) < 1000


def test_a_base_in_the_hub_cache(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = cached(tmp_path / "cache", "me/base", of_folder(base))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert resolve(str(adapt(tmp_path / "adapter", base="me/base"))).base == snapshot


def test_one_that_changes_no_weight(base: Path) -> None:
    with pytest.raises(SourceError, match=r"an adapter \(PREFIX_TUNING\) that changes no weights"):
        check_adapter(adapt(base, base="x", peft_type="PREFIX_TUNING"))


def test_without_its_weights(base: Path) -> None:
    (adapt(base, base="x") / "adapter_model.safetensors").unlink()
    with pytest.raises(SourceError, match="without its weights"):
        check_adapter(base)


@pytest.mark.parametrize("alone", [True, False])
def test_weights_cut_short(base: Path, tmp_path: Path, *, alone: bool) -> None:
    """Known at the start, and of the file that is damaged."""
    folder = adapt(tmp_path / "adapter", base=base) if alone else adapt(base, base="x")
    weights = folder / "adapter_model.safetensors"
    resolve(str(folder))
    for content, what in (
        (weights.read_bytes()[:-1], "truncated"),
        (weights.read_bytes()[:100], "truncated"),
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    ):
        weights.write_bytes(content)
        with pytest.raises(SourceError, match=what) as told:
            resolve(str(folder))
        assert told.value.where == str(weights)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_a_description_that_is_none(text: str, base: Path) -> None:
    adapt(base, base="x")
    (base / "adapter_config.json").write_text(text)
    with pytest.raises(SourceError, match="JSON") as caught:
        check_adapter(base)
    assert "take adapter_config.json out of the folder" in caught.value.remedy
