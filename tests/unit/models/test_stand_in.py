"""What stands in for a model says what it says where it holds its weights, and has its products in any case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

import onnxruntime as ort
import torch
import transformers
from safetensors.torch import load_file, save_file

from spq_graph.models.stand_in import StandIn

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2}


def folder(place: Path, family: str, dtype: Any = torch.float32, **more: Any) -> Path:
    config = getattr(transformers, f"{family}Config")(**SIZES | HEADS | more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(place)
    return place


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_it_says_what_the_model_says(tmp_path: Path, family: str, dtype: Any, tied: bool) -> None:
    place = folder(tmp_path / "model", family, dtype, tie_word_embeddings=tied, attention_bias=family == "Llama")
    found = StandIn.of(place)
    assert found is not None
    assert found.whole
    assert found.exact
    assert (len(found.sizes.layers), found.sizes.heads, found.sizes.groups) == (2, 4, 2)
    ir.save(found.graph(24), tmp_path / "model.onnx")
    ids = np.random.default_rng(0).integers(0, 64, (3, 24))
    places = np.tile(np.arange(24), (3, 1))
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"input_ids": ids, "position_ids": places})
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_of_a_gguf_as_well(tmp_path: Path, kind: str, tied: bool) -> None:
    gguf = pytest.importorskip("gguf")
    from tests.support.gguf_files import llama, write_llama

    model = llama(tied=tied)
    held = write_llama(tmp_path / "tiny.gguf", model, quantization=gguf.GGMLQuantizationType[kind])
    model.load_state_dict({name: torch.tensor(held[name]) for name in held}, strict=False)
    found = StandIn.of(tmp_path / "tiny.gguf")
    assert found is not None
    assert (found.exact, found.packed, found.whole) == (True, True, True)
    assert (found.max_length, found.token("bos_token_id"), found.token("eos_token_id")) == (128, 1, 2)
    ir.save(found.graph(24), tmp_path / "model.onnx")
    ids = np.random.default_rng(0).integers(0, 64, (3, 24))
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"input_ids": ids, "position_ids": np.tile(np.arange(24), (3, 1))})
    with torch.no_grad():
        expected = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def changed(tensors: Callable[[dict[str, Any]], object], **config: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        held = load_file(place / "model.safetensors")
        tensors(held)
        save_file(held, place / "model.safetensors", metadata={"format": "pt"})
        known = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(known | config))

    return change


def nothing(_: dict[str, Any]) -> None:
    pass


def header(**wrong: Any) -> Callable[[Path], None]:
    """One tensor's entry in the file's header with other values."""

    def change(place: Path) -> None:
        file = place / "model.safetensors"
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:end])
        entries["model.norm.weight"] |= wrong
        text = json.dumps(entries).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])

    return change


@pytest.mark.parametrize(
    "change",
    [
        header(shape=5),
        header(shape=None),
        header(shape=[-32]),
        header(shape=[16]),
        header(shape=["32"]),
        header(dtype=4),
        header(data_offsets=[0, 5]),
        header(data_offsets=["0", 128]),
        changed(nothing, num_hidden_layers=3),
        changed(nothing, rms_norm_eps="small"),
        changed(lambda held: held.update({"model.layers.0.self_attn.k_proj.weight": torch.zeros(0, 32)})),
        changed(lambda held: held.update({"model.layers.0.self_attn.q_proj.weight": torch.zeros(0, 32)})),
        changed(nothing, rope_parameters={"rope_theta": -1.0}),
        changed(nothing, num_attention_heads=3),
        changed(lambda held: held.pop("model.layers.1.mlp.up_proj.weight")),
        changed(lambda held: held.update({"model.layers.0.mlp.experts": torch.zeros(4)})),
        changed(lambda held: held.update({"model.norm.weight": torch.zeros(4)})),
        changed(lambda held: held.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)})),
        lambda place: (place / "model.safetensors").rename(place / "pytorch_model.bin"),
        lambda place: (place / "adapter_config.json").write_text("{}"),
    ],
)
def test_what_it_does_not_know_has_none(tiny_llama: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    place = tmp_path / "model"
    shutil.copytree(tiny_llama, place)
    assert StandIn.of(place) is not None
    change(place)
    assert StandIn.of(place) is None


def made_large(place: Path, config: dict[str, Any], shapes: dict[str, list[int]]) -> None:
    """A folder with weights of these shapes in bfloat16, of which the file has no blocks on disk."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (place / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)


def layer_of(number: int, queries: int, keys: int, width: int, hidden: int) -> dict[str, list[int]]:
    at = f"model.layers.{number}"
    return {
        f"{at}.self_attn.q_proj.weight": [queries, width],
        f"{at}.self_attn.k_proj.weight": [keys, width],
        f"{at}.self_attn.v_proj.weight": [keys, width],
        f"{at}.self_attn.o_proj.weight": [width, queries],
        f"{at}.mlp.gate_proj.weight": [hidden, width],
        f"{at}.mlp.up_proj.weight": [hidden, width],
        f"{at}.mlp.down_proj.weight": [width, hidden],
        f"{at}.input_layernorm.weight": [width],
        f"{at}.post_attention_layernorm.weight": [width],
    }


def ran(found: StandIn, file: Path) -> Any:
    ir.save(found.graph(8), file)
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"input_ids": np.ones((1, 8), np.int64), "position_ids": np.arange(8)[None]})
    assert logits.shape == (1, 8, found.sizes.vocabulary)
    assert np.isfinite(logits).all()
    return logits


ENDS = {"model.embed_tokens.weight": [128256, 4096], "lm_head.weight": [128256, 4096], "model.norm.weight": [4096]}
LARGE = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}


def test_of_a_large_model_it_is_small(tmp_path: Path) -> None:
    """And all its shapes go together: it runs."""
    layers = [layer_of(number, 4096, 1024, 4096, 14336) for number in range(32)]
    shapes = ENDS | {name: shape for layer in layers for name, shape in layer.items()}
    made_large(tmp_path / "model", LARGE | {"model_type": "llama"}, shapes)
    large = StandIn.of(tmp_path / "model")
    assert large is not None
    assert large.exact
    assert not large.whole
    assert 7.4e9 < large.sizes.weights < 7.6e9
    assert large.sizes.run == large.sizes.weights
    assert len(large.sizes.sites) == 32 * 7 + 1
    assert large.written.weights < 40e6
    assert large.written.vocabulary == large.sizes.vocabulary
    ran(large, tmp_path / "model.onnx")


def test_of_many_experts_it_has_some_and_a_token_goes_through_few(tmp_path: Path) -> None:
    """As Qwen3-30B-A3B has them, and in the stacks of a file that was never taken apart."""
    attention = [layer_of(number, 4096, 512, 2048, 6144) for number in range(48)]
    shapes = {name: [151936, 2048] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    for number, layer in enumerate(attention):
        at = f"model.layers.{number}.mlp"
        shapes |= {name: shape for name, shape in layer.items() if ".mlp." not in name}
        shapes |= {f"{at}.gate.weight": [128, 2048], f"{at}.experts.down_proj": [128, 2048, 768]}
        shapes |= {f"{at}.experts.gate_up_proj": [128, 1536, 2048]}
    more = {"num_hidden_layers": 48, "num_key_value_heads": 4, "num_experts_per_tok": 8, "head_dim": 128}
    made_large(tmp_path / "model", LARGE | more | {"model_type": "qwen3_moe"}, shapes)
    large = StandIn.of(tmp_path / "model")
    assert large is not None
    assert not large.exact
    assert large.sizes.gated == 48 * 128
    assert len(large.sizes.counted) == 48 * (4 + 2 * 128)
    assert 30e9 < large.sizes.weights < 31e9
    assert 2.9e9 < large.sizes.run < 3.4e9
    assert large.written.weights < 60e6
    assert large.written.run < large.written.weights
    ran(large, tmp_path / "model.onnx")


def test_a_layer_of_queries_narrower_than_the_stream_and_packed_products_runs(tmp_path: Path) -> None:
    at = "model.layers.0"
    shapes = {
        "model.embed_tokens.weight": [96, 48],
        f"{at}.self_attn.qkv_proj.weight": [64, 48],
        f"{at}.self_attn.o_proj.weight": [48, 32],
        f"{at}.mlp.gate_up_proj.weight": [60, 48],
        f"{at}.mlp.down_proj.weight": [48, 30],
    }
    config = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "model_type": "phi3"}
    made_large(tmp_path / "model", config, shapes)
    found = StandIn.of(tmp_path / "model")
    assert found is not None
    assert found.whole
    assert found.named == {
        f"{at}.self_attn.qkv_proj": (48, 64),
        f"{at}.self_attn.o_proj": (32, 48),
        f"{at}.mlp.gate_up_proj": (48, 60),
        f"{at}.mlp.down_proj": (30, 48),
        "lm_head": (48, 96),
        "model.embed_tokens": (96, 48),
    }
    ran(found, tmp_path / "model.onnx")
