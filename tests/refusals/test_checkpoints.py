"""Refusals of configurations, adapters and weights that do not fit, each made and put right as it says."""

from __future__ import annotations

import json
import shutil
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


@follows("models/leftover.py:_refuse_missing")
def test_weights_that_lack(refusal: Told, folder: Path, tiny_llama: Path) -> None:
    """Among them the head, which may be the embedding."""
    weights(folder, lm_head__weight=None)
    with refusal:
        load_causal_lm(folder)
    key = refusal.error.remedy.partition('write "')[2].partition('"')[0]
    configured(folder, **{key: True})
    assert load_causal_lm(folder).config.tie_word_embeddings
    as_it_was(folder, tiny_llama)


@follows("models/leftover.py:_refuse_shapes")
def test_weights_of_other_shapes(refusal: Told, folder: Path, tiny_llama: Path) -> None:
    configured(folder, intermediate_size=40)
    with refusal:
        load_causal_lm(folder)
    configured(folder, intermediate_size=48)
    assert load_causal_lm(folder).config.intermediate_size == 48
    as_it_was(folder, tiny_llama)


@follows("models/leftover.py:_left_out")
def test_weights_without_a_place(refusal: Told, folder: Path, tiny_llama: Path, tmp_path: Path) -> None:
    configured(folder, num_hidden_layers=1)
    with refusal:
        load_causal_lm(folder)
    line = refusal.error.remedy.partition("write ")[2].partition(" into config.json")[0]
    configured(folder, **json.loads(f"{{{line}}}"))
    assert load_causal_lm(folder).config.num_hidden_layers == 2
    configured(folder, num_hidden_layers=1)
    transformers = pytest.importorskip("transformers")
    code = (
        refusal.error.remedy.partition("the folder, ")[2]
        .partition(", and pass")[0]
        .replace("NEW", str(tmp_path / "new"))
    )
    exec(code, {"AutoModelForCausalLM": transformers.AutoModelForCausalLM})
    assert load_causal_lm(tmp_path / "new").config.num_hidden_layers == 1
    as_it_was(folder, tiny_llama)


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
