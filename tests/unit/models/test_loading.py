"""Weights that are not the model's are refused by name: the loader would go on, with random numbers or without them."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file

from spq_graph.models.leftover import listed
from spq_graph.models.loading import load_causal_lm
from spq_graph.terms.errors import SourceError

Tensors = dict[str, npt.NDArray[Any]]
ATTENTION, MLP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def noise(*shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 0.2, shape).astype(np.float32)


@pytest.fixture
def variant(tiny_llama: Path, tmp_path: Path) -> Callable[..., Path]:
    """A folder whose weights are changed by a function, and its configuration by keys."""

    def make(change: Callable[[Tensors], Tensors] = lambda tensors: tensors, **keys: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_llama, folder, dirs_exist_ok=True)
        tensors = change(dict(load_file(folder / "model.safetensors")))
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | keys
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def with_layer(tensors: Tensors) -> Tensors:
    return tensors | {name.replace("layers.1", "layers.2"): t for name, t in tensors.items() if "layers.1" in name}


@pytest.mark.parametrize(
    ("extra", "remedy"),
    [
        ({f"{ATTENTION}.bias": (32,)}, '"attention_bias": true into'),
        ({f"{MLP}.bias": (48,)}, '"mlp_bias": true into'),
        ({f"{ATTENTION}.lora_A.weight": (4, 32), f"{ATTENTION}.lora_B.weight": (32, 4)}, "merge_and_unload"),
        ({"model.layers.0.input_layernorm.extra": (32,)}, "save what transformers makes of the folder"),
    ],
    ids=["attention bias", "mlp bias", "adapter", "another"],
)
def test_tensors_that_the_model_has_no_place_for(
    extra: dict[str, tuple[int, ...]], remedy: str, variant: Callable[..., Path]
) -> None:
    folder = variant(lambda tensors: tensors | {name: noise(*shape) for name, shape in extra.items()})
    with pytest.raises(SourceError, match=f"hold {len(extra)} tensors that the model has no place for") as caught:
        load_causal_lm(folder)
    assert next(iter(extra)) in caught.value.what
    assert remedy in caught.value.remedy


def test_weights_of_another_quantizer(variant: Callable[..., Path]) -> None:
    codes = {f"{ATTENTION}.{part}": noise(4, 32) for part in ("qweight", "qzeros", "scales")}
    with pytest.raises(SourceError, match=r"quantized already \(there is .*q_proj\.q"):
        load_causal_lm(variant(lambda t: {k: v for k, v in t.items() if k != f"{ATTENTION}.weight"} | codes))


def test_a_layer_too_many_and_what_is_told_to_do(variant: Callable[..., Path], tmp_path: Path) -> None:
    import transformers

    with pytest.raises(SourceError, match=r"hold 9 tensors .*layers\.2.* and 5 more") as caught:
        load_causal_lm(variant(with_layer))
    assert '"num_hidden_layers": 3' in caught.value.remedy
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "new")
    assert load_causal_lm(tmp_path / "new").config.num_hidden_layers == 2
    assert load_causal_lm(variant(with_layer, num_hidden_layers=3)).config.num_hidden_layers == 3


def test_biases_that_are_named_then(variant: Callable[..., Path]) -> None:
    biases = {f"model.layers.{n}.mlp.{part}_proj.bias": 48 for n in (0, 1) for part in ("gate", "up")}
    biases |= {f"model.layers.{n}.mlp.down_proj.bias": 32 for n in (0, 1)}
    model = load_causal_lm(variant(lambda t: t | {name: noise(size) for name, size in biases.items()}, mlp_bias=True))
    assert float(model.get_parameter(f"{MLP}.bias").detach().abs().max()) > 0


def test_what_is_of_no_use_is_not_spoken_of(variant: Callable[..., Path]) -> None:
    remarks: list[str] = []
    known = {"model.layers.0.self_attn.rotary_emb.inv_freq": noise(4), "model.embed_tokens.position_ids": noise(9)}
    load_causal_lm(variant(lambda tensors: tensors | known), remark=remarks.append)
    assert remarks == []


def test_another_head_is_left_out_and_said(variant: Callable[..., Path]) -> None:
    remarks: list[str] = []
    load_causal_lm(variant(lambda t: t | {"v_head.summary.weight": noise(1, 32)}), remark=remarks.append)
    assert len(remarks) == 1
    assert "v_head.summary.weight" in remarks[0]


def test_a_head_that_is_not_the_embedding_though_tied(variant: Callable[..., Path]) -> None:
    remarks: list[str] = []
    load_causal_lm(variant(tie_word_embeddings=True), remark=remarks.append)
    assert "taken as they are" in " ".join(remarks)


def test_a_tied_head_beside_the_embedding(variant: Callable[..., Path]) -> None:
    remarks: list[str] = []
    folder = variant(lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]}, tie_word_embeddings=True)
    load_causal_lm(folder, remark=remarks.append)
    assert remarks == []


@pytest.mark.parametrize(
    ("change", "what", "remedy"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}, "lack 1 .*lm_head", "tie_word_embeddings"),
        (lambda t: {f"_orig_mod.{k}": v for k, v in t.items()}, "lack 21 .*there is _orig_mod", "removeprefix"),
        (lambda t: t | {f"{MLP}.weight": noise(48, 16)}, r"up_proj.weight is \[48, 16\] and not \[48, 32\]", "sizes"),
        (lambda t: t | {f"{MLP}.weight": t[f"{MLP}.weight"] * np.float32("nan")}, "1 tensors .*NaN.*up_proj", "again"),
        (lambda t: t | {"model.norm.weight": np.full(32, np.inf, "f")}, "infinity: model.norm.weight", "again"),
    ],
    ids=["no head", "compiled", "shape", "nan", "infinite"],
)
def test_tensors_that_are_missing_or_other(
    change: Callable[[Tensors], Tensors], what: str, remedy: str, variant: Callable[..., Path]
) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        load_causal_lm(variant(change))
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("keys", "what", "where"),
    [
        ({"rms_norm_eps": "x"}, "'rms_norm_eps' expected float, got str", "config.json"),
        ({"hidden_act": "swish9"}, "hidden_act 'swish9' in config.json is unknown", "model"),
        ({"model_type": "llama9"}, "model type `llama9`", "config.json"),
        (
            {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
            "rope_type 'spiral' in config.json is unknown",
            "model (rope_type 'spiral')",
        ),
        ({"rope_parameters": None, "rope_scaling": {"type": "su9", "factor": 2.0}}, "rope_type 'su9'", "'su9')"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "'rope_type'='dynamic'", "config.json"),
    ],
)
def test_a_configuration_that_transformers_refuses(
    keys: dict[str, Any], what: str, where: str, variant: Callable[..., Path]
) -> None:
    with pytest.raises(SourceError) as caught:
        load_causal_lm(variant(**keys))
    assert what in caught.value.what
    assert caught.value.where.endswith(where)


@pytest.mark.parametrize("family", ["gemma3", "llama4", "mllama"])
def test_a_family_that_fills_what_is_left_out_with_gigabytes(variant: Callable[..., Path], family: str) -> None:
    """Its sizes are refused before they are allocated."""
    folder = variant(model_type=family, architectures=None)
    with pytest.raises(SourceError, match=r"numbers, and the weights take 8\d,\d{3} bytes|refuses its configuration"):
        load_causal_lm(folder)


def test_a_wrapper_is_taken_off_as_it_is_told(variant: Callable[..., Path]) -> None:
    folder = variant(lambda tensors: {f"_orig_mod.{name}": t for name, t in tensors.items()})
    with pytest.raises(SourceError) as caught:
        load_causal_lm(folder)
    _, option, program = shlex.split(caught.value.remedy.rpartition("off the names: ")[2])
    subprocess.run([sys.executable, option, program], check=True, timeout=100)
    assert load_causal_lm(folder).config.num_hidden_layers == 2


def test_frequencies_that_fit_no_head(variant: Callable[..., Path]) -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 3, "long_factor": [2.0] * 3}
    with pytest.raises(SourceError, match="cannot be loaded") as caught:
        load_causal_lm(variant(rope_parameters=rope | {"factor": 2.0, "original_max_position_embeddings": 16}))
    assert "rope_type 'longrope'" in caught.value.where


def test_the_first_names_and_how_many_more() -> None:
    assert listed(["b", "a"]) == "a, b"
    assert listed(str(n) for n in range(9)) == "0, 1, 2, 3 and 5 more"
    assert len(listed(["x" * 70_000] * 9)) < 1000
