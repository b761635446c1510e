"""What stands in for a decoder, to time what a run takes without unpacking or exporting it: its shapes, from headers.

Of families that are known through and through, and where it is small enough, it holds the model's own weights, and says
what the model says, but that its rotary positions are scaled in no way. Of others it has their products, wherever those
are of the plain kinds that `layers` tells from names and shapes, and does with them what decoders do. Where the model
is large, it has fewer layers, or narrower ones, and numbers at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import onnx_ir as ir

from spq_graph.documents.parsed import parse_json
from spq_graph.models.adapter import ADAPTER_CONFIG
from spq_graph.models.gguf_head import Described
from spq_graph.models.headers import Tensor, stored_in
from spq_graph.models.layers import Shape, numbers_of
from spq_graph.models.sizes import HEAD, Sizes
from spq_graph.models.source import weight_files
from spq_graph.models.stand_in_graph import NORM, Weaver, theta_of

_EMBEDDING: Final = "model.embed_tokens"
# Families whose layers are these products and norms, and nothing else.
_FAMILIES: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_PATHS: Final = (
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
)
_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_NORMS_BY_HEAD: Final = ("self_attn.q_norm", "self_attn.k_norm")
_Read: TypeAlias = tuple[tuple[str, ...], Mapping[str, Any], Mapping[str, Tensor], Mapping[str, str]]
_OWN = 16_000_000  # numbers of a model whose own weights are read and run in a second


@dataclass(frozen=True, slots=True)
class StandIn:
    """What is known of a decoder without loading it.

    Attributes:
        sizes: of the model.
        bytes: of its weights in float32.
        files: that it was read from, by name.
        exact: whether its family is known through and through.
        packed: whether it is a GGUF.
        tokenizer: of a GGUF the contents of the tokenizer's files, by name, as far as they are asked for.
    """

    sizes: Sizes
    bytes: int
    files: tuple[str, ...]
    exact: bool
    packed: bool
    tokenizer: Mapping[str, str]
    _config: Mapping[str, Any]
    _tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, place: Path, *, tokenizer: bool = False) -> StandIn | None:
        """Of a folder or GGUF that was checked; None where it, or the form that its weights are stored in, is another.

        Args:
            place: a folder with config.json and weights, or a GGUF file.
            tokenizer: whether that of a GGUF is needed.
        """
        read = _read_gguf(place, tokenizer=tokenizer) if place.is_file() else _read_folder(place)
        if read is None:
            return None
        files, config, tensors, made = read
        shapes = {name: stored.shape for name, stored in tensors.items()}
        sizes, exact = Sizes.of(config, shapes), config.get("model_type") in _FAMILIES
        if sizes is None or (exact and not _is_plain(sizes, shapes)):
            return None
        if not all(stored.readable for stored in tensors.values()):
            return None
        if not all(_is_positive(number) for number in (theta_of(config), config.get("rms_norm_eps", 1.0))):
            return None
        return cls(sizes, 4 * numbers_of(shapes.values()), files, exact, place.is_file(), made, config, tensors)

    @property
    def whole(self) -> bool:
        """Whether what is written holds the model's own weights, as far as they are told apart, and all its layers."""
        return self.bytes <= 4 * _OWN

    @property
    def written(self) -> Sizes:
        """Of what is written."""
        return self.sizes if self.whole else self.sizes.reduced()

    @property
    def named(self) -> dict[str, tuple[int, int]]:
        """Shapes of sites by the keys that they have in the export, as far as those are known.

        Paths of modules are those of the weights, but where experts are joined, and where llama.cpp gave other names.
        """
        sizes = self.sizes
        if self.exact or (not self.packed and not any(layer.experts for layer in sizes.layers)):
            return {**sizes.sites, sizes.embedding: (sizes.vocabulary, sizes.width)}
        return {}

    @property
    def max_length(self) -> int | None:
        """Longest sequence that the positions cover, as far as is known."""
        found = self._config.get("max_position_embeddings")
        return found if isinstance(found, int) and found > 0 else None

    def token(self, name: str) -> int | None:
        """The id that the configuration has under a name."""
        found = self._config.get(name)
        return found if isinstance(found, int) and 0 <= found < self.sizes.vocabulary else None

    def graph(self, positions: int) -> ir.Model:
        """It as ONNX.

        The graph takes `input_ids` and `position_ids`, int64 [batch, length], and gives `logits`, float32 [batch,
        length, vocabulary].

        Args:
            positions: the longest sequence that it will run.
        """
        own = self._tensors if self.whole else {}
        if not self.exact:  # what else a norm of another family does is not known, such as to add one to its weight
            own = {name: stored for name, stored in own.items() if "norm" not in name}
        return Weaver(self.written, self._config, own).model(positions)


def _read_gguf(file: Path, *, tokenizer: bool) -> _Read | None:
    found = Described.of(file, tokenizer=tokenizer)
    return ((file.name,), found.config, found.tensors, found.tokenizer) if found is not None else None


def _read_folder(folder: Path) -> _Read | None:
    files = weight_files(folder)
    if (folder / ADAPTER_CONFIG).is_file() or any(file.suffix != ".safetensors" for file in files):
        return None
    config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    tensors = {name: stored for file in files for name, stored in stored_in(file).items()}
    return ("config.json", *(file.name for file in files)), config, tensors, {}


def _is_plain(sizes: Sizes, shapes: Mapping[str, Shape]) -> bool:
    """Whether the weights are those of a known family, each of them and no more."""
    first, width = sizes.layers[0], sizes.width
    if len(first.feeds) != 1 or first.out.inputs % (2 * sizes.heads) or sizes.heads % sizes.groups:
        return False
    queries, hidden, head = first.out.inputs, first.feeds[0].out.inputs, first.out.inputs // sizes.heads
    keys = sizes.groups * head
    products = dict(zip(_PATHS, (queries, keys, keys, width, hidden, hidden, width), strict=True))
    inputs = {"self_attn.o_proj": queries, "mlp.down_proj": hidden}
    needed: dict[str, Shape] = {f"{_EMBEDDING}.weight": (sizes.vocabulary, width), f"{NORM}.weight": (width,)}
    more: dict[str, Shape] = {f"{HEAD}.weight": (sizes.vocabulary, width)}
    for layer in range(len(sizes.layers)):
        at = f"model.layers.{layer}"
        needed |= {f"{at}.{part}.weight": (wide, inputs.get(part, width)) for part, wide in products.items()}
        needed |= {f"{at}.{part}.weight": (width,) for part in _NORMS}
        more |= {f"{at}.{part}.bias": (wide,) for part, wide in products.items()}
        more |= {f"{at}.{part}.weight": (head,) for part in _NORMS_BY_HEAD}
    return needed.keys() <= shapes.keys() and shapes.items() <= (needed | more).items()


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and 0.0 < number < 1e30
