"""Refusals of configurations, adapters and weights that do not fit, each made and put right as it says."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file

from spq_graph.models.config import check_config
from spq_graph.models.loading import load_causal_lm
from spq_graph.models.source import resolve
from tests.support.decoders import write_decoder
from tests.support.following import Told

follows = pytest.mark.follows
WEIGHTS = "model.safetensors"
RIGHT: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "bos_token_id": 1,
}


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        pytest.param("architectures", "LlamaForCausalLM", marks=follows("models/config.py:_wrong", 'a list, ["')),
        pytest.param("architectures", [1], marks=follows("models/config.py:_wrong", "a list of names")),
        pytest.param("model_type", 3, marks=follows("models/config.py:_wrong", "a name, such as")),
        pytest.param("vocab_size", "many", marks=follows("models/config.py:_wrong", "a whole number above 0")),
        pytest.param("hidden_size", 30, marks=follows("models/config.py:_wrong", "a multiple of")),
        pytest.param("num_key_value_heads", 3, marks=follows("models/config.py:_wrong", "a divisor of")),
        pytest.param("bos_token_id", "<s>", marks=follows("models/config.py:_wrong", "a token id")),
        pytest.param("rope_scaling", "linear", marks=follows("models/config.py:_wrong", "an object is expected")),
    ],
)
def test_wrong_values(refusal: Told, tmp_path: Path, key: str, wrong: object) -> None:
    """The key that is named is corrected, or the original file taken, and it is taken."""
    with refusal:
        check_config(RIGHT | {key: wrong}, tmp_path)
    assert refusal.error.remedy.split()[1] == key
    corrected = RIGHT | {key: wrong} | {key: RIGHT.get(key)}
    check_config(corrected, tmp_path)
    check_config(RIGHT, tmp_path)


# ------------------------------------------------------------------------------------------------- weights


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of a model to change."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@follows("models/config.py:check_held", "numbers, and the weights take")
@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("num_hidden_layers", 2**31 - 1),
        ("hidden_size", 1 << 20),
        ("vocab_size", 2**31 - 1),
        ("intermediate_size", 10**9),
        ("head_dim", 10**9),
    ],
)
def test_sizes_that_the_weights_cannot_have(
    refusal: Told, folder: Path, tiny_llama: Path, key: str, wrong: int
) -> None:
    """Before anything is allocated, or made a billion times."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: wrong}))
    with refusal:
        resolve(str(folder))
    shutil.copy(tiny_llama / "config.json", folder)
    assert resolve(str(folder)).kind == "folder"


@follows("models/config.py:check_held", "of which every layer has some")
def test_more_layers_than_tensors(refusal: Told, folder: Path, tiny_llama: Path) -> None:
    configured(folder, num_hidden_layers=300)
    with refusal:
        resolve(str(folder))
    shutil.copy(tiny_llama / "config.json", folder)
    assert resolve(str(folder)).kind == "folder"


def weights(folder: Path, **changes: np.ndarray | None) -> None:
    arrays = load_file(folder / WEIGHTS)
    for end, array in changes.items():
        name = next((name for name in arrays if name.endswith(end.replace("__", "."))), end.replace("__", "."))
        arrays.pop(name, None)
        if array is not None:
            arrays[name] = array
    save_file(arrays, folder / WEIGHTS, {"format": "pt"})


def configured(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def as_it_was(folder: Path, tiny_llama: Path) -> None:
    """Config and weights from one place, whole."""
    for name in ("config.json", WEIGHTS):
        shutil.copy(tiny_llama / name, folder / name)
    assert load_causal_lm(folder).config.num_hidden_layers == 2


@follows("models/leftover.py:_refuse_missing", "-> Take config.json")
def test_weights_that_lack(refusal: Told, folder: Path, tiny_llama: Path) -> None:
    weights(folder, layers__1__mlp__up_proj__weight=None)
    with refusal:
        load_causal_lm(folder)
    as_it_was(folder, tiny_llama)


@follows("models/leftover.py:_refuse_missing", "If the head is the embedding")
def test_weights_without_a_head(refusal: Told, folder: Path, tiny_llama: Path) -> None:
    weights(folder, lm_head__weight=None)
    with refusal:
        load_causal_lm(folder)
    key = refusal.error.remedy.partition('write "')[2].partition('"')[0]
    configured(folder, **{key: True})
    assert load_causal_lm(folder).config.tie_word_embeddings
    as_it_was(folder, tiny_llama)


@follows("models/leftover.py:_refuse_missing", "inside of a wrapper")
@pytest.mark.parametrize("kind", ["whole", "shards", "bin"])
def test_weights_that_a_wrapper_named(refusal: Told, folder: Path, kind: str) -> None:
    """The command that is told, in a Python of its own, on weights in one file and in several, of either kind."""
    folder = folder.rename(folder.with_name("a model's folder"))
    torch = pytest.importorskip("torch")
    wrapped = {f"_orig_mod.{name}": array for name, array in load_file(folder / WEIGHTS).items()}
    save_file(wrapped, folder / WEIGHTS, {"format": "pt"})
    if kind == "shards":
        names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
        index = {name: names[place % 2] for place, name in enumerate(wrapped)}
        for file in names:
            held = {name: array for name, array in wrapped.items() if index[name] == file}
            save_file(held, folder / file, {"format": "pt"})
        (folder / f"{WEIGHTS}.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8"
        )
    if kind == "bin":
        torch.save({name: torch.from_numpy(array) for name, array in wrapped.items()}, folder / "pytorch_model.bin")
    if kind != "whole":
        (folder / WEIGHTS).unlink()
    with refusal:
        load_causal_lm(folder)
    program, option, code = shlex.split(refusal.error.remedy.rpartition("off the names: ")[2])
    assert program == "python"
    subprocess.run([sys.executable, option, code], check=True)
    assert load_causal_lm(folder).config.num_hidden_layers == 2


def unmerged(folder: Path, base_too: bool) -> None:
    """As peft saves a model that it wraps: projections below `base_layer`, with the adapter's own beside them."""
    arrays = load_file(folder / WEIGHTS)
    for name in [name for name in arrays if name.endswith("q_proj.weight")]:
        stem = name.removesuffix(".weight")
        if not base_too:
            arrays[f"{stem}.base_layer.weight"] = arrays.pop(name)
        arrays |= {f"{stem}.lora_A.default.weight": np.ones((4, 32), np.float32)}
        arrays |= {f"{stem}.lora_B.default.weight": np.ones((32, 4), np.float32)}
    save_file(arrays, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(
    "base_too",
    [
        pytest.param(False, marks=follows("models/leftover.py:_refuse_missing", "merge_and_unload()")),
        pytest.param(True, marks=follows("models/leftover.py:_left_out", "merge_and_unload()")),
    ],
)
def test_weights_of_an_adapter(refusal: Told, folder: Path, tiny_llama: Path, tmp_path: Path, base_too: bool) -> None:
    """Merged by the calls that are named."""
    unmerged(folder, base_too)
    with refusal:
        load_causal_lm(folder)
    assert all(name in refusal.error.remedy for name in ("merge_and_unload()", "save_pretrained"))
    peft = pytest.importorskip("peft")
    base = load_causal_lm(tiny_llama)
    wrapped = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    assert load_causal_lm(tmp_path / "merged").config.num_hidden_layers == 2


@follows("models/leftover.py:_refuse_shapes")
def test_weights_of_other_shapes(refusal: Told, folder: Path, tiny_llama: Path) -> None:
    configured(folder, intermediate_size=40)
    with refusal:
        load_causal_lm(folder)
    configured(folder, intermediate_size=48)
    assert load_causal_lm(folder).config.intermediate_size == 48
    as_it_was(folder, tiny_llama)


def go_on_without(refusal: Told, tmp_path: Path) -> Any:
    """What the code that is told saves, loaded."""
    code = refusal.error.remedy.partition("the folder, ")[2].partition(", and pass")[0]
    transformers = pytest.importorskip("transformers")
    exec(code.replace("NEW", str(tmp_path / "new")), {"AutoModelForCausalLM": transformers.AutoModelForCausalLM})
    return load_causal_lm(tmp_path / "new").config


def said_for_config(refusal: Told) -> dict[str, Any]:
    """What is to be written into config.json."""
    lines = refusal.error.remedy.partition("write ")[2].partition(" into config.json")[0]
    return dict(json.loads(f"{{{lines}}}"))


@follows("models/leftover.py:_left_out", "num_hidden_layers")
def test_layers_without_a_place(refusal: Told, folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    configured(folder, num_hidden_layers=1)
    with refusal:
        load_causal_lm(folder)
    configured(folder, **said_for_config(refusal))
    assert load_causal_lm(folder).config.num_hidden_layers == 2
    configured(folder, num_hidden_layers=1)
    assert go_on_without(refusal, tmp_path).num_hidden_layers == 1
    as_it_was(folder, tiny_llama)


@follows("models/leftover.py:_left_out", "write EACH")
def test_biases_without_a_place(refusal: Told, folder: Path, tmp_path: Path) -> None:
    layers = range(2)
    sizes = {"gate_proj": 48, "up_proj": 48, "down_proj": 32}
    biases = {
        f"layers__{n}__mlp__{name}__bias": np.ones(size, np.float32) for n in layers for name, size in sizes.items()
    }
    weights(folder, **{f"model__{name}": array for name, array in biases.items()})
    with refusal:
        load_causal_lm(folder)
    assert not go_on_without(refusal, tmp_path).mlp_bias
    configured(folder, **said_for_config(refusal))
    assert load_causal_lm(folder).config.mlp_bias


@follows("models/leftover.py:_left_out", "-> To go on without them")
def test_weights_without_a_place(refusal: Told, folder: Path, tmp_path: Path) -> None:
    weights(folder, model__layers__0__mlp__scaler__weight=np.ones(32, np.float32))
    with refusal:
        load_causal_lm(folder)
    assert go_on_without(refusal, tmp_path).num_hidden_layers == 2


@follows("models/leftover.py:_refuse_not_finite")
def test_weights_that_are_not_finite(refusal: Told, folder: Path, tiny_llama: Path) -> None:
    weights(folder, layers__0__mlp__up_proj__weight=np.full((48, 32), np.nan, np.float32))
    with refusal:
        load_causal_lm(folder)
    as_it_was(folder, tiny_llama)


@follows("models/loading.py:_config", "Correct what is named")
def test_a_kind_that_nobody_knows(refusal: Told, folder: Path, tiny_llama: Path) -> None:
    configured(folder, model_type="lama")
    with refusal:
        load_causal_lm(folder)
    configured(folder, model_type="llama")
    load_causal_lm(folder)
    as_it_was(folder, tiny_llama)


@follows("models/loading.py:_config", "runs no code")
def test_a_model_with_code_of_its_own(refusal: Told, folder: Path, tmp_path: Path) -> None:
    configured(folder, model_type="own", auto_map={"AutoConfig": "code.OwnConfig"})
    (folder / "code.py").write_text("raise SystemExit", encoding="utf-8")
    with refusal:
        load_causal_lm(folder)
    assert resolve(str(write_decoder(tmp_path / "exported.onnx", layers=1))).kind == "onnx"


@follows("models/loading.py:_loaded")
def test_an_activation_that_nobody_knows(refusal: Told, folder: Path, tiny_llama: Path) -> None:
    configured(folder, hidden_act="silo")
    with refusal:
        load_causal_lm(folder)
    assert "silo" in refusal.error.what
    configured(folder, hidden_act="silu")
    load_causal_lm(folder)
    as_it_was(folder, tiny_llama)
