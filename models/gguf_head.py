"""What a GGUF says of itself at its beginning, read fast; and as a Hugging Face folder would say it.

The package's reader makes three arrays of numpy of every string, and a vocabulary with its merges is 300,000.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from spq_graph.documents.json_text import json_text
from spq_graph.models.gguf_rope import ROPE_FACTORS, value_of

if TYPE_CHECKING:
    from gguf import GGUFReader, ReaderTensor

# llama.cpp's names of parts of a layer, and paths of modules that transformers has for them in most families.
_PATHS: Final[Mapping[str, str]] = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **{f"ffn_{part}_exps": f"mlp.experts.{part}_proj" for part in ("gate", "up", "gate_up", "down")},
    **{f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")},
}
_OUTSIDE: Final[Mapping[str, str]] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_KEYS: Final[Mapping[str, str]] = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "expert_used_count": "num_experts_per_tok",
}
_LAYER: Final = re.compile(r"blk\.(?P<number>\d+)\.(?P<part>.+)")
# llama.cpp turns pairs of neighbours in these, and has put the rows of queries and keys in that order.
_INTERLEAVED: Final = frozenset({"llama"})


_TOKENS: Final = {"bos_token": "bos_token_id", "eos_token": "eos_token_id"}


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor of a GGUF, in blocks of whatever bits: what `headers.Stored` is of a safetensors file.

    Attributes:
        shape: rows first.
        pairs: heads whose rows lie in pairs of neighbours, and are put back into two halves; 0 for none.
    """

    shape: tuple[int, ...]
    pairs: int
    _tensor: ReaderTensor

    @property
    def readable(self) -> bool:
        """Whether it holds numbers: the reading of a file ends before, at a type that the package does not know."""
        return True

    def read(self) -> NDArray[np.float32]:
        """Its numbers, float32 of its shape."""
        from gguf import dequantize

        numbers = np.asarray(dequantize(self._tensor.data, self._tensor.tensor_type), np.float32)
        if self.pairs:
            numbers = numbers.reshape(self.pairs, -1, 2, *self.shape[1:]).swapaxes(1, 2)
        return numbers.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Described:
    """A GGUF, in the words of a Hugging Face folder.

    Attributes:
        config: what config.json would say, as far as it is asked for.
        tensors: by name.
        tokenizer: contents of its files, by name; empty where it was not asked for, or there is none.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Packed]
    tokenizer: Mapping[str, str]

    @classmethod
    def of(cls, file: Path, *, tokenizer: bool) -> Described | None:
        """From its header; None where that cannot be read, or transformers would not read the file.

        Args:
            file: the GGUF.
            tokenizer: whether to make it, too.
        """
        try:
            return cls._read(read_head(file), tokenizer)
        except Exception:  # whatever it is, unpacking says it
            return None

    @classmethod
    def _read(cls, head: GGUFReader, tokenizer: bool) -> Described | None:
        architecture = value_of(head, "general.architecture", "none")
        whole = value_of(head, "split.count", 1) <= 1 and value_of(head, "general.type", "model") == "model"
        if not whole or plain(architecture) not in _architectures():
            return None
        given = {name: value_of(head, f"{architecture}.{key}", None) for key, name in _KEYS.items()}
        config = {"model_type": architecture} | {name: value for name, value in given.items() if value is not None}
        config |= {name: value_of(head, f"tokenizer.ggml.{name}", None) for name in _TOKENS.values()}
        tensors = {_name(t.name): _packed(t, config) for t in head.tensors if t.name != ROPE_FACTORS}
        return cls(config, tensors, _tokenizer(head) if tokenizer else {})


def plain(architecture: str) -> str:
    """Its name without what differs between llama.cpp and transformers, a hyphen or none: qwen2moe and qwen2_moe."""
    return architecture.replace("_", "").replace("-", "")


def _architectures() -> set[str]:
    """Those that transformers reads, without importing torch."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

    return {plain(name) for name in (*GGUF_CONFIG_MAPPING, *GGUF_CONFIG_ARCHS)}


def _tokenizer(head: GGUFReader) -> dict[str, str]:
    """Contents of tokenizer.json and tokenizer_config.json, by name, which transformers makes without torch."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    keys = {name: f"tokenizer.{key}" for key, name in GGUF_TOKENIZER_MAPPING["tokenizer"].items()}
    held = {name: value for name, key in keys.items() if (value := value_of(head, key, None)) is not None}
    if "tokens" not in held:
        return {}
    tokenizer, _ = convert_gguf_tokenizer(value_of(head, "general.architecture", ""), held)
    config = {name: held["tokens"][held[key]] for name, key in _TOKENS.items() if key in held}
    if (template := value_of(head, "tokenizer.chat_template", None)) is not None:
        config["chat_template"] = template
    name = "tokenizer_config.json"
    return {"tokenizer.json": tokenizer.to_str(), name: json_text(config, name, indent=None)}


def _name(name: str) -> str:
    """A tensor's name in a Hugging Face folder."""
    stem, _, kind = name.rpartition(".")
    if (found := _LAYER.fullmatch(stem)) is None:
        return f"{_OUTSIDE.get(stem, stem)}.{kind}"
    return f"model.layers.{found['number']}.{_PATHS.get(found['part'], found['part'])}.{kind}"


def _packed(tensor: ReaderTensor, config: Mapping[str, Any]) -> Packed:
    shape = tuple(map(int, reversed(tensor.shape.tolist())))
    heads = {"attn_q": config.get("num_attention_heads"), "attn_k": config.get("num_key_value_heads")}
    count = heads.get(tensor.name.split(".")[-2], 0) if config["model_type"] in _INTERLEAVED else 0
    return Packed(shape, count if isinstance(count, int) and count and shape[0] % (2 * count) == 0 else 0, tensor)


def read_head(file: Path) -> GGUFReader:
    """The metadata and the table of tensors; the weights stay in the file, which is mapped.

    Raises:
        Exception: of numpy, unicode or enum, by where the file ends or what it holds.
    """
    return _reader()(file)


@cache
def _reader() -> type[GGUFReader]:
    """The package's reader, but that a list of strings or numbers is read at once."""
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):
        """As above: the same parts, without three arrays of numpy for each."""

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            found: tuple[int, list[Any], list[int], list[Any]]
            kind = GGUFValueType(int(self._get(orig_offs, np.uint32)[0])) if raw_type == GGUFValueType.ARRAY else None
            parts: list[Any]
            if kind is GGUFValueType.STRING:
                size, parts = self._strings(orig_offs + 12, int(self._get(orig_offs + 4, np.uint64)[0]))
            elif kind is not None and kind in self.gguf_scalar_to_np:
                count = int(self._get(orig_offs + 4, np.uint64)[0])
                numbers = self._get(orig_offs + 12, self.gguf_scalar_to_np[kind], min(count, self.data.size))
                if len(numbers) < count:
                    raise ValueError("a list goes on beyond the end of the file")
                size, parts = numbers.nbytes, list(np.asarray(numbers).reshape(-1, 1))
            else:
                found = super()._get_field_parts(orig_offs, raw_type)
                return found
            types = [GGUFValueType.ARRAY, kind] if parts else [GGUFValueType.ARRAY]
            return 12 + size, parts, list(range(len(parts))), types

        def _strings(self, start: int, count: int) -> tuple[int, list[Any]]:
            held, at, strings = self.data.data, start, list[Any]()
            order: Literal["little", "big"] = (
                "little" if (sys.byteorder == "little") == (self.byte_order == "I") else "big"
            )
            for _ in range(count):
                begin = at + 8
                at = begin + int.from_bytes(held[begin - 8 : begin], order)
                if at > len(held):
                    raise ValueError("a list goes on beyond the end of the file")
                strings.append(held[begin:at])
            return at - start, strings

    return Reader
