"""What a config.json must say, checked in milliseconds and by key; transformers would take seconds to refuse it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

from spq_graph.documents.json_text import json_text
from spq_graph.models.chatter import clipped
from spq_graph.models.leftover import listed, quantized_already
from spq_graph.terms.errors import CheckError, SourceError

# Not every LMHeadModel is a decoder: BertLMHeadModel looks ahead unless its configuration says otherwise.
_CAUSAL: Final = ("ForCausalLM", "GPT2LMHeadModel")
_SIZES: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
# A family may have these by layer, or leave them to other keys.
_MAY_BE_NULL: Final = frozenset({"num_key_value_heads", "head_dim", "intermediate_size"})
_MAY_BE_LISTS: Final = frozenset({"intermediate_size", "num_key_value_heads", "num_attention_heads"})
_HEAD_WIDTHS: Final = ("head_dim", "head_size", "kv_channels", "d_kv")
_LARGEST: Final = 2**31 - 1
# A decoder has at least as many numbers as each of these says: embedding, norms, one projection of each kind.
_PRODUCTS: Final = (
    ("vocab_size", "hidden_size"),
    ("num_hidden_layers", "hidden_size"),
    ("hidden_size", "intermediate_size"),
    ("hidden_size", "num_attention_heads", "head_dim"),
)
_PER_BYTE: Final = 16  # that many numbers to a byte are more than any format packs, and than factors save


def check_config(config: dict[str, Any], folder: Path) -> None:
    """Refuse a configuration that is no causal language model's, or whose values are none.

    Args:
        config: as read from config.json.
        folder: where that lies.

    Raises:
        SourceError: what is wrong, by key and value.
    """
    where = str(folder / "config.json")
    _check_kind(config, where)
    _check_sizes(config, where)
    _check_heads(config, where)
    _check_tokens(config, where)
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(config.get(key), dict | None):
            raise _wrong(key, config[key], "an object", where)
    _check_not_quantized(config, where)


def check_held(config: dict[str, Any], folder: Path, tensors: int | None = None) -> None:
    """Refuse sizes that would make a model many times as large as its weights: it is told before it is allocated.

    Args:
        config: as read from config.json, and checked.
        folder: where that and the weights lie.
        tensors: how many the weights are; None where their files do not say so at their beginning.

    Raises:
        SourceError: the product of sizes that is too large, and what the weights take; or more layers than tensors.
    """
    files = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin")]
    most = _PER_BYTE * sum(file.stat().st_size for file in files)
    for keys in _PRODUCTS:
        sizes = [config.get(key) for key in keys]
        if all(isinstance(size, int) for size in sizes) and (count := math.prod(map(int, sizes))) > most:  # type: ignore[arg-type]
            raise SourceError(
                f"{' x '.join(keys)} is {count:,} numbers, and the weights take {most // _PER_BYTE:,} bytes in all",
                where=str(folder / "config.json"),
                remedy="Take config.json and the weights from the same place.",
            )
    layers = config.get("num_hidden_layers")
    if tensors is not None and isinstance(layers, int) and layers > tensors:
        raise SourceError(
            f"num_hidden_layers is {layers:,}, and the weights are {tensors:,} tensors, of which every layer has some",
            where=str(folder / "config.json"),
            remedy="Take config.json and the weights from the same place.",
        )


def check_limits(config: dict[str, Any], file: Path) -> None:
    """Refuse what is no limit or token, of a configuration beside an ONNX file, of which no more is taken.

    Args:
        config: as read from config.json.
        file: that one.

    Raises:
        SourceError: what is wrong, by key and value.
    """
    limits = ("vocab_size", "max_position_embeddings")
    _check_sizes({key: config[key] for key in limits if config.get(key) is not None}, str(file))
    _check_tokens(config, str(file))


def _check_not_quantized(config: dict[str, Any], where: str) -> None:
    if quantization := config.get("quantization_config") or config.get("compression_config"):
        method = quantization.get("quant_method", "unknown method") if isinstance(quantization, dict) else quantization
        raise quantized_already(listed([str(method)]), where)


def _check_kind(config: dict[str, Any], where: str) -> None:
    if config.get("is_encoder_decoder"):
        raise SourceError(
            "an encoder-decoder model, not a causal language model",
            where=where,
            remedy="spq-graph works on decoder-only models, such as LLaMA, Mistral, Qwen2, Gemma2 or Phi3.",
        )
    names = config.get("architectures") or []
    if isinstance(names, str):
        raise _wrong("architectures", names, f'a list, ["{clipped(names, 60)}"]', where)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _wrong("architectures", names, 'a list of names, such as ["LlamaForCausalLM"]', where)
    if names and not any(name.endswith(_CAUSAL) for name in names):
        raise SourceError(
            f"not a causal language model: architectures is {listed(names)}",
            where=where,
            remedy="Pass a decoder: a model whose architecture ends in ForCausalLM.",
        )
    kind = config.get("model_type")
    if not kind:
        raise SourceError(
            "model_type is missing, so nothing says which model this is",
            where=where,
            remedy='Add it, for example "model_type": "llama".',
        )
    if not isinstance(kind, str):
        raise _wrong("model_type", kind, 'a name, such as "llama"', where)


def _check_sizes(config: dict[str, Any], where: str) -> None:
    for key in _SIZES:
        if key not in config or (config[key] is None and key in _MAY_BE_NULL):
            continue
        given = config[key]
        each = given if isinstance(given, list) and given and key in _MAY_BE_LISTS else [given]
        if not all(_is_size(value) for value in each):
            raise _wrong(key, given, "a whole number above 0", where)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST


def _check_heads(config: dict[str, Any], where: str) -> None:
    """Raises where heads do not share the width, or groups of them the keys, evenly."""
    width, heads, groups = (config.get(key) for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    own_width = any(config[key] is not None for key in config if key.endswith(_HEAD_WIDTHS))
    if isinstance(width, int) and isinstance(heads, int) and not own_width and width % heads:
        raise _wrong("hidden_size", width, f"a multiple of num_attention_heads, {heads}, or head_dim beside it", where)
    if isinstance(heads, int) and isinstance(groups, int) and heads % groups:
        raise _wrong("num_key_value_heads", groups, f"a divisor of num_attention_heads, {heads}", where)


def _check_tokens(config: dict[str, Any], where: str) -> None:
    for key in ("bos_token_id", "eos_token_id"):
        given = config.get(key)
        each = given if isinstance(given, list) else [given]
        if not all(value is None or (isinstance(value, int) and not isinstance(value, bool)) for value in each):
            raise _wrong(key, given, "a token id, or a list of some", where)


def _wrong(key: str, value: object, wanted: str, where: str) -> SourceError:
    try:
        shown = json_text(value, "config.json", indent=None)
    except ValueError:  # an integer of more digits than Python writes
        shown = "a number of thousands of digits"
    except CheckError:  # JSON has no NaN, but Python reads it
        shown = str(value)
    return SourceError(
        f"{key} is {clipped(shown, 60)}, and {wanted} is expected",
        where=where,
        remedy=f"Correct {key} there, or take the file of the original model.",
    )
