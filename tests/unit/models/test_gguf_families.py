"""GGUF files of several architectures become models whose ONNX graph says what transformers says, weight by weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf", reason="reads and writes GGUF files: pip install gguf")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with it: pip install accelerate")

import gguf
import onnxruntime as ort
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spq_graph.models.export import export_folder
from spq_graph.models.gguf import unpack
from spq_graph.models.gguf_rope import restore_scale
from tests.support.gguf_files import TOKENS, write_llama

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text"}
FAMILIES |= {"phi3": "phi3"}


def decoder(kind: str, tied: bool) -> Any:
    """A random model of two layers; norms differ from what a fresh model has, so that a lost offset shows."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        FAMILIES[kind],
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128 if kind == "qwen3" else 16,  # which is what transformers takes any Qwen3 to have
        vocab_size=len(TOKENS),
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        rms_norm_eps=1e-6,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def by_transformers(file: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def logits(model: Any, ids: torch.Tensor) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        said: np.ndarray[Any, Any] = model(ids).logits.numpy()
    return said


@pytest.mark.parametrize(
    ("kind", "tied"), [(kind, tied) for kind in FAMILIES for tied in (False, True) if tied or kind != "gemma2"]
)
def test_exported_graph_says_what_transformers_says(tmp_path: Path, kind: str, tied: bool) -> None:
    file, folder, graph = tmp_path / "tiny.gguf", tmp_path / "folder", tmp_path / "model.onnx"
    original = decoder(kind, tied)
    write_llama(file, original, architecture=kind, quantization=gguf.GGMLQuantizationType.Q8_0)
    folder.mkdir()
    unpack(file, folder)
    export_folder(folder, graph, cache=False)
    ids = torch.arange(3, 43).reshape(2, 20)
    positions = torch.arange(20).expand(2, 20)
    feed = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": positions}
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (said,) = session.run(["logits"], {name: value.numpy() for name, value in feed.items()})
    np.testing.assert_allclose(said, logits(by_transformers(file), ids), atol=1e-4, rtol=0)
    near = np.corrcoef(said.ravel(), logits(original, ids).ravel())[0, 1]
    assert near > 0.999, "8 bits away from the model that the file was written from"


@pytest.mark.parametrize(("kind", "layers", "scale"), [("gemma2", 46, 144), ("gemma3", 62, 168), ("gemma2", 42, 256)])
def test_queries_of_the_largest_gemmas_are_scaled_as_published(kind: str, layers: int, scale: int) -> None:
    """No file holds by what; the published values are those of google/gemma-2-27b, gemma-3-27b-it and gemma-2-9b."""
    width = {46: 4608, 62: 5376, 42: 3584}[layers]
    config = AutoConfig.for_model(FAMILIES[kind], hidden_size=width, num_hidden_layers=layers)
    config.num_attention_heads = 16 if layers == 42 else 32
    restore_scale(config, kind)
    assert config.query_pre_attn_scalar == scale
