"""What stands in for a folder's decoder, to time what a run takes without an export: its shapes, from its weight files.

Where it is small enough it holds the folder's own weights, and says what the model says, but that its rotary positions
are scaled in no way. Where it is not, it has fewer layers, or narrower ones, and numbers at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx_ir as ir

from spq_graph.documents.parsed import parse_json
from spq_graph.models.adapter import ADAPTER_CONFIG
from spq_graph.models.headers import Stored, stored_in
from spq_graph.models.stand_in_graph import EMBEDDING, HEAD, NORM, Sizes, Weaver, theta_of

# Families whose layers are these products and norms, and nothing else.
_FAMILIES: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_NORMS_BY_HEAD: Final = ("self_attn.q_norm", "self_attn.k_norm")
_OWN = 16_000_000  # numbers of a model whose own weights are read and run in a second


@dataclass(frozen=True, slots=True)
class StandIn:
    """What is known of a folder's decoder without loading it.

    Attributes:
        sizes: of the model.
        bytes: of its weights in float32.
        files: that it was read from, by name.
    """

    sizes: Sizes
    bytes: int
    files: tuple[str, ...]
    _config: Mapping[str, Any]
    _tensors: Mapping[str, Stored]

    @classmethod
    def of(cls, folder: Path) -> StandIn | None:
        """Of a folder that was checked; None where its family, or the form that its weights are stored in, is another.

        Args:
            folder: with config.json and weights.
        """
        files = sorted(folder.glob("model.safetensors")) or sorted(folder.glob("*.safetensors"))
        if not files or (folder / ADAPTER_CONFIG).is_file():
            return None
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        tensors = {name: stored for file in files for name, stored in stored_in(file).items()}
        sizes = _sizes(config, tensors) if config.get("model_type") in _FAMILIES else None
        if sizes is None or not all(stored.readable for stored in tensors.values()):
            return None
        if not all(_is_positive(number) for number in (theta_of(config), config.get("rms_norm_eps", 1.0))):
            return None
        numbers = sum(math.prod(stored.shape) for stored in tensors.values())
        return cls(sizes, 4 * numbers, ("config.json", *(file.name for file in files)), config, tensors)

    @property
    def whole(self) -> bool:
        """Whether what is written holds the model's own weights, all of them."""
        return self.bytes <= 4 * _OWN

    @property
    def written(self) -> Sizes:
        """Of what is written."""
        return self.sizes if self.whole else self.sizes.reduced()

    def graph(self, positions: int) -> ir.Model:
        """It as ONNX.

        The graph takes `input_ids` and `position_ids`, int64 [batch, length], and gives `logits`, float32 [batch,
        length, vocabulary].

        Args:
            positions: the longest sequence that it will run.
        """
        return Weaver(self.written, self._config, self._tensors if self.whole else {}).model(positions)


def _sizes(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Sizes | None:
    """What the weights say of the sizes; None where they are not those of such a decoder, each of them and no more."""
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    shapes = {name: stored.shape for name, stored in tensors.items()}
    first = "model.layers.0"
    try:
        (vocabulary, width), (hidden, _) = shapes[f"{EMBEDDING}.weight"], shapes[f"{first}.mlp.gate_proj.weight"]
        (queries, _), (keys, _) = (shapes[f"{first}.self_attn.{part}_proj.weight"] for part in "qk")
    except (KeyError, ValueError):
        return None
    if 0 in (vocabulary, width, hidden, queries, keys):
        return None
    if not isinstance(layers, int) or not isinstance(heads, int) or queries % heads or keys % (queries // heads):
        return None
    head = queries // heads
    sizes = Sizes(vocabulary, layers, width, hidden, heads, keys // head, head)
    needed: dict[str, tuple[int, ...]] = {f"{EMBEDDING}.weight": (vocabulary, width), f"{NORM}.weight": (width,)}
    more: dict[str, tuple[int, ...]] = {f"{HEAD}.weight": (vocabulary, width)}
    for layer in range(layers):
        for part, (outputs, inputs) in sizes.products.items():
            needed[f"model.layers.{layer}.{part}.weight"] = (outputs, inputs)
            more[f"model.layers.{layer}.{part}.bias"] = (outputs,)
        needed |= {f"model.layers.{layer}.{part}.weight": (width,) for part in _NORMS}
        more |= {f"model.layers.{layer}.{part}.weight": (head,) for part in _NORMS_BY_HEAD}
    fits = needed.keys() <= shapes.keys() and shapes.items() <= (needed | more).items()
    return sizes if fits and heads % sizes.groups == 0 and not head % 2 else None


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and 0.0 < number < 1e30
