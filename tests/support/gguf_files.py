"""GGUF files of a few kilobytes, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

TOKENS = ["<unk>", "<s>", "</s>", *(chr(c) for c in range(33, 33 + 60)), "!!"]
"""A byte-level vocabulary of 64: three special tokens, single characters, and one that two of them merge to."""


_OFFSET = (gguf.MODEL_ARCH.GEMMA2, gguf.MODEL_ARCH.GEMMA3)
"""Whose norms multiply by one more than their weight, which llama.cpp's converter adds to it."""


def interleaved(weight: Array, heads: int) -> Array:
    """Rows of a query or key projection as llama.cpp rotates them: pairs side by side, not in two halves."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def llama(*, tied: bool = False, **rope: Any) -> Any:
    """A LlamaForCausalLM of two layers, always with the same weights; `rope` goes to its rotary positions."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=len(TOKENS),
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **rope},
    )
    return LlamaForCausalLM(config).eval()


def write_llama(
    path: Path,
    model: Any,
    *,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    rope_factors: Array | None = None,
    extra_tensor: bool = False,
    without: str = "",
    keys: dict[str, Any] | None = None,
    tokens: list[str] | None = TOKENS,
    architecture: str = "llama",
) -> dict[str, Array]:
    """Write a LlamaForCausalLM, or another decoder of its shape, as a GGUF.

    Args:
        path: the file.
        model: transformers' model, on the CPU.
        quantization: of the matrices; norms stay float32.
        rope_factors: what `rope_freqs.weight` holds, float32 [width / 2]; None for no such tensor.
        extra_tensor: add a bias that no LLaMA has.
        without: leave the tensor of this name out.
        keys: metadata to add: strings, integers, numbers.
        tokens: the vocabulary; None for a file without one.
        architecture: what the file says that it is.

    Returns:
        The weights as they can be read from the file, by transformers' names, float32.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    _add_shape(writer, config)
    for key, value in (keys or {}).items():
        kinds = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        kinds[type(value)](key, value)
    if tokens is not None:
        _add_vocabulary(writer, tokens)
    by_name = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    kind = by_name["llama" if config.model_type == "llama" else architecture]
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    interleaves = kind == gguf.MODEL_ARCH.LLAMA
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if interleaves else {}
    held = {}
    for name, tensor in model.state_dict().items():
        stem, suffix = name.rsplit(".", 1)
        stored = f"{names.get_name(stem)}.{suffix}"
        if stored == without or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        array = np.ascontiguousarray(tensor.numpy())
        array = array + np.float32(1) if kind in _OFFSET and stem.endswith("norm") else array
        count = heads.get(stem.rsplit(".", 1)[-1])
        array = interleaved(array, count) if count else array
        held[name] = _add(writer, stored, array, quantization if array.ndim == 2 else gguf.GGMLQuantizationType.F32)
        if count:  # back to where it was: [heads, pairs, 2] to [heads, 2, pairs]
            rows = array.shape[0]
            split = held[name].reshape(count, rows // count // 2, 2, *array.shape[1:])
            held[name] = split.swapaxes(1, 2).reshape(array.shape)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors.astype(np.float32))
    if extra_tensor:
        writer.add_tensor("blk.0.attn_q.bias", np.ones(config.hidden_size, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _add(writer: gguf.GGUFWriter, name: str, array: Array, kind: gguf.GGMLQuantizationType) -> Array:
    if kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, array)
        return array
    packed = gguf.quantize(array, kind)
    writer.add_tensor(name, packed, raw_dtype=kind)
    return gguf.dequantize(packed, kind)


def _add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    control = gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([control if t.startswith("<") and len(t) > 1 else gguf.TokenType.NORMAL for t in tokens])
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
