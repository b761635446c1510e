"""What is wrong in a config.json is told by key and value, before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spq_graph.models.config import check_config, check_limits
from spq_graph.models.leftover import refuse_quantized_names
from spq_graph.terms.errors import SourceError

GOOD = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "rope_parameters": {"rope_type": "default"},
}


@pytest.mark.parametrize(
    "also",
    [
        {},
        {"architectures": None},
        {"num_key_value_heads": None, "head_dim": None, "eos_token_id": None, "rope_parameters": None},
        {"hidden_size": 33, "head_dim": 8},
        {"hidden_size": 33, "qk_nope_head_dim": 8},
        {"intermediate_size": [48, 96]},
        {"intermediate_size": None},
        {"hidden_size": 33, "kv_channels": 8},
        {"quantization_config": None},
    ],
)
def test_taken(also: dict[str, Any], tmp_path: Path) -> None:
    check_config(GOOD | also, tmp_path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"architectures": "LlamaForCausalLM"},
            'architectures is "LlamaForCausalLM", and a list, ["LlamaForCausalLM"]',
        ),
        ({"architectures": {"a": 1}}, 'architectures is {"a": 1}'),
        ({"architectures": [None]}, "architectures is [null]"),
        ({"model_type": 5}, "model_type is 5"),
        ({"num_hidden_layers": "2"}, 'num_hidden_layers is "2", and a whole number above 0 is expected'),
        ({"num_hidden_layers": None}, "num_hidden_layers is null"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is true"),
        ({"num_hidden_layers": [2]}, "num_hidden_layers is [2]"),
        ({"vocab_size": 64.0}, "vocab_size is 64.0"),
        ({"vocab_size": 10**4999}, "vocab_size is a number of thousands of digits"),
        ({"hidden_size": float("nan")}, "hidden_size is nan, and a whole number above 0"),
        ({"vocab_size": [1, float("inf")]}, "vocab_size is [1, inf]"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000"),
        ({"intermediate_size": []}, "intermediate_size is []"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"hidden_size": 33}, "hidden_size is 33, and a multiple of num_attention_heads, 4"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, and a divisor of num_attention_heads, 4"),
        ({"eos_token_id": "</s>"}, 'eos_token_id is "</s>"'),
        ({"bos_token_id": [1, "x"]}, 'bos_token_id is [1, "x"]'),
        ({"rope_scaling": "yarn"}, 'rope_scaling is "yarn", and an object is expected'),
        ({"max_position_embeddings": "long" * 99}, 'max_position_embeddings is "longlong'),
    ],
)
def test_refused_by_key_and_value(change: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        check_config(GOOD | change, tmp_path)
    assert what in caught.value.what
    assert len(caught.value.what) < 200
    assert caught.value.where == str(tmp_path / "config.json")
    assert f"Correct {next(iter(change))} there" in caught.value.remedy


@pytest.mark.parametrize("change", [{"max_position_embeddings": -1}, {"vocab_size": "64"}, {"eos_token_id": "x"}])
def test_beside_an_onnx_file(change: dict[str, Any], tmp_path: Path) -> None:
    check_limits({"architectures": ["Any"], "vocab_size": None, "eos_token_id": 2}, tmp_path / "config.json")
    with pytest.raises(SourceError, match=next(iter(change))):
        check_limits(GOOD | change, tmp_path / "config.json")


@pytest.mark.parametrize(
    ("change", "how"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"quantization_config": {"load_in_4bit": True}}, "unknown method"),
        ({"quantization_config": "fp8"}, "fp8"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ],
)
def test_quantized_already(change: dict[str, Any], how: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"quantized already \\({how}\\)"):
        check_config(GOOD | change, tmp_path)


@pytest.mark.parametrize(
    "name", ["q_proj.qweight", "q_proj.weight_scale_inv", "up_proj.SCB", "up_proj.weight.absmax", "gate_up_proj_blocks"]
)
def test_codes_and_scales_in_the_weight_file(name: str, tmp_path: Path) -> None:
    header = {f"model.layers.0.{part}": {} for part in ("q_proj.weight", "norm.weight", name)}
    with pytest.raises(SourceError, match=f"quantized already \\(there is model.layers.0.{name}\\)"):
        refuse_quantized_names(header, str(tmp_path))


def test_scales_that_are_weights(tmp_path: Path) -> None:
    names = ("model.layers.0.layer_scale", "model.layers.0.attn.logit_scale", "model.layers.0.mlp.up_proj.weight")
    refuse_quantized_names(names, str(tmp_path))
