"""What stands in for a folder says what its model says where it holds its weights, and has its shapes in any case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
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
    assert (found.sizes.layers, found.sizes.heads, found.sizes.groups) == (2, 4, 2)
    ir.save(found.graph(24), tmp_path / "model.onnx")
    ids = np.random.default_rng(0).integers(0, 64, (3, 24))
    places = np.tile(np.arange(24), (3, 1))
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"input_ids": ids, "position_ids": places})
    model = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
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
        changed(nothing, model_type="gemma2"),
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
        lambda place: (place / "model.safetensors").rename(place / "model.bin"),
        lambda place: (place / "adapter_config.json").write_text("{}"),
    ],
)
def test_what_it_does_not_know_has_none(tiny_llama: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    place = tmp_path / "model"
    shutil.copytree(tiny_llama, place)
    assert StandIn.of(place) is not None
    change(place)
    assert StandIn.of(place) is None


def test_of_a_large_model_it_is_small(tiny_llama: Path, tmp_path: Path) -> None:
    """And all its shapes go together: it runs."""
    small = StandIn.of(tiny_llama)
    assert small is not None
    sizes = replace(small.sizes, layers=32, width=4096, hidden=14336, heads=32, groups=8, head=128, vocabulary=128256)
    large = replace(small, sizes=sizes, bytes=4 * sizes.weights)
    assert not large.whole
    assert 7.4e9 < sizes.weights < 7.6e9
    assert len(sizes.sites) == 32 * 7 + 1
    assert large.written.weights < 40e6
    assert large.written.vocabulary == sizes.vocabulary
    ir.save(large.graph(8), tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    ids = np.ones((1, 8), np.int64)
    [logits] = session.run(["logits"], {"input_ids": ids, "position_ids": np.arange(8)[None]})
    assert logits.shape == (1, 8, sizes.vocabulary)
    assert np.isfinite(logits).all()
