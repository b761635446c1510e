"""A decoder in ONNX with the shapes that a folder's weight files state, to time what a run takes without an export.

Where it is small enough it holds the folder's own weights, and says what the model says, but that its rotary positions
are scaled in no way. Where it is not, it has fewer layers, or narrower ones, and numbers at random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spq_graph.documents.parsed import parse_json
from spq_graph.models.adapter import ADAPTER_CONFIG
from spq_graph.models.headers import Stored, stored_in

# Families whose layers are these products and norms, and nothing else.
_FAMILIES: Final = frozenset({"llama", "mistral", "qwen2", "qwen3"})
_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_NORMS_BY_HEAD: Final = ("self_attn.q_norm", "self_attn.k_norm")
EMBEDDING: Final = "model.embed_tokens"
_NORM, _HEAD = "model.norm", "lm_head"
# Numbers of a stand-in with the model's own weights, which are read and run in a second; and those of its layer and its
# head where they are at random, and how many layers it then has.
_OWN, _MOST_LAYER, _MOST_HEAD, _LAYERS = 16_000_000, 8_000_000, 32_000_000, 2
_OPSET: Final = 23  # the first with operators for attention, rotary positions and norms


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a decoder: how many layers, and how wide what is in them is."""

    vocabulary: int
    layers: int
    width: int
    hidden: int
    heads: int
    groups: int
    head: int

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """N and K of every product of a layer, as weight files have them, by its path in the layer."""
        queries, keys = self.heads * self.head, self.groups * self.head
        return {
            "self_attn.q_proj": (queries, self.width),
            "self_attn.k_proj": (keys, self.width),
            "self_attn.v_proj": (keys, self.width),
            "self_attn.o_proj": (self.width, queries),
            "mlp.gate_proj": (self.hidden, self.width),
            "mlp.up_proj": (self.hidden, self.width),
            "mlp.down_proj": (self.width, self.hidden),
        }

    @property
    def sites(self) -> dict[str, tuple[int, int]]:
        """K and N of every product by its module path, the head last."""
        layers = {
            f"model.layers.{layer}.{part}": (inputs, outputs)
            for layer in range(self.layers)
            for part, (outputs, inputs) in self.products.items()
        }
        return layers | {_HEAD: (self.width, self.vocabulary)}

    @property
    def weights(self) -> int:
        """Numbers of all products: what a token takes goes by them."""
        return sum(math.prod(shape) for shape in self.sites.values())

    def reduced(self) -> Sizes:
        """Of one that takes about a second to run, whatever this one takes."""
        layer, by = sum(map(math.prod, self.products.values())), 1
        while self.width * self.vocabulary // by > _MOST_HEAD or layer // by**2 > _MOST_LAYER:
            by *= 2
        heads = max(1, self.heads // by)
        return replace(
            self,
            layers=min(self.layers, _LAYERS),
            width=max(1, self.width // by),
            hidden=max(1, self.hidden // by),
            heads=heads,
            groups=math.gcd(heads, self.groups),
        )


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
        if not all(_is_positive(number) for number in (_theta(config), config.get("rms_norm_eps", 1.0))):
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
        return _Weaver(self.written, self._config, self._tensors if self.whole else {}).model(positions)


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
    if not isinstance(layers, int) or not isinstance(heads, int) or queries % heads or keys % (queries // heads):
        return None
    head = queries // heads
    sizes = Sizes(vocabulary, layers, width, hidden, heads, keys // head, head)
    needed: dict[str, tuple[int, ...]] = {f"{EMBEDDING}.weight": (vocabulary, width), f"{_NORM}.weight": (width,)}
    more: dict[str, tuple[int, ...]] = {f"{_HEAD}.weight": (vocabulary, width)}
    for layer in range(layers):
        for part, (outputs, inputs) in sizes.products.items():
            needed[f"model.layers.{layer}.{part}.weight"] = (outputs, inputs)
            more[f"model.layers.{layer}.{part}.bias"] = (outputs,)
        needed |= {f"model.layers.{layer}.{part}.weight": (width,) for part in _NORMS}
        more |= {f"model.layers.{layer}.{part}.weight": (head,) for part in _NORMS_BY_HEAD}
    fits = needed.keys() <= shapes.keys() and shapes.items() <= (needed | more).items()
    return sizes if fits and heads % sizes.groups == 0 and not head % 2 else None


def _theta(config: Mapping[str, Any]) -> Any:
    """The base of the rotary positions."""
    given = config.get("rope_parameters")
    return (given if isinstance(given, dict) else config).get("rope_theta", 10_000.0)


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and 0.0 < number < 1e30


class _Weaver:
    """Writes the graph: own weights where they are given, and numbers at random where not.

    Args:
        sizes: of what is written.
        config: as config.json has it.
        tensors: the model's weights; none for numbers at random.
    """

    def __init__(self, sizes: Sizes, config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> None:
        self.sizes, self.config, self.tensors = sizes, config, tensors
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.some = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)

    def model(self, positions: int) -> ir.Model:
        """The whole model."""
        ids, places = (
            ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch", "length"]))
            for name in ("input_ids", "position_ids")
        )
        sizes = self.sizes
        table = self.weight(f"{EMBEDDING}.weight", (sizes.vocabulary, sizes.width), gain=1.0)
        value = self.op("Gather", [table, ids], EMBEDDING)
        turns = [*self.rotary(positions), places]
        for layer in range(sizes.layers):
            value = self.layer(f"model.layers.{layer}", value, turns)
        value = self.norm(_NORM, value)
        tied = f"{_HEAD}.weight" not in self.tensors
        head = self.op("Transpose", [table], f"{_HEAD}.turned", perm=[1, 0]) if tied else self.turned(_HEAD)
        logits = self.op("MatMul", [value, head], _HEAD)
        logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape(["batch", "length", sizes.vocabulary])
        graph = ir.Graph(
            [ids, places], [logits], nodes=self.nodes, initializers=self.initializers, opset_imports={"": _OPSET}
        )
        return ir.Model(graph, ir_version=10)

    def layer(self, at: str, value: ir.Value, turns: list[ir.Value]) -> ir.Value:
        """One decoder layer."""
        sizes, inner = self.sizes, f"{at}.self_attn"
        normed = self.norm(f"{at}.input_layernorm", value)
        query, key, read = (self.product(f"{inner}.{part}_proj", normed) for part in "qkv")
        query, key = self.by_head(f"{inner}.q_norm", query, turns), self.by_head(f"{inner}.k_norm", key, turns)
        numbers = {"q_num_heads": sizes.heads, "kv_num_heads": sizes.groups, "is_causal": 1}
        mixed = self.op("Attention", [query, key, read], f"{inner}.mixed", **numbers)
        value = self.op("Add", [value, self.product(f"{inner}.o_proj", mixed)], f"{at}.attended")
        normed = self.norm(f"{at}.post_attention_layernorm", value)
        gate, up = (self.product(f"{at}.mlp.{part}_proj", normed) for part in ("gate", "up"))
        silu = self.op("Mul", [gate, self.op("Sigmoid", [gate], f"{at}.mlp.sigmoid")], f"{at}.mlp.act_fn")
        down = self.product(f"{at}.mlp.down_proj", self.op("Mul", [silu, up], f"{at}.mlp.product"))
        return self.op("Add", [value, down], f"{at}.out")

    def by_head(self, name: str, value: ir.Value, turns: list[ir.Value]) -> ir.Value:
        """Queries or keys, normed head by head where the model does so, and turned by their positions."""
        head = self.sizes.head
        heads = self.sizes.heads if name.endswith("q_norm") else self.sizes.groups
        if f"{name}.weight" in self.tensors:
            value = self.norm(name, self.parted(value, f"{name}.heads", heads, head))
            value = self.parted(value, f"{name}.joined", heads * head)
        return self.op("RotaryEmbedding", [value, *turns], f"{name}.turned", num_heads=heads)

    def parted(self, value: ir.Value, name: str, *parts: int) -> ir.Value:
        """Every token's numbers in so many parts."""
        return self.op("Reshape", [value, self.constant(f"{name}.shape", np.array([0, 0, *parts]))], name)

    def rotary(self, positions: int) -> list[ir.Value]:
        """Cosines and sines, float32 [positions, head / 2]: RoFormer (arXiv 2104.09864), equation 15."""
        half = self.sizes.head // 2
        angles = np.outer(np.arange(positions), float(_theta(self.config)) ** (-np.arange(half) / half))
        return [self.constant(f"rotary.{of.__name__}", of(angles).astype(np.float32)) for of in (np.cos, np.sin)]

    def norm(self, name: str, value: ir.Value) -> ir.Value:
        """A norm by the root of the mean square."""
        stored = self.tensors.get(f"{name}.weight")
        scale = stored.read() if stored is not None else np.ones(self.sizes.width, np.float32)
        epsilon = float(self.config.get("rms_norm_eps", 1e-6))
        return self.op("RMSNormalization", [value, self.constant(f"{name}.weight", scale)], name, epsilon=epsilon)

    def product(self, name: str, value: ir.Value) -> ir.Value:
        """A product with a weight, and its bias where it has one."""
        product = self.op("MatMul", [value, self.turned(name)], name)
        stored = self.tensors.get(f"{name}.bias")
        if stored is None:
            return product
        return self.op("Add", [product, self.constant(f"{name}.bias", stored.read())], f"{name}.biased")

    def turned(self, name: str) -> ir.Value:
        """The weight of a product, [K, N]."""
        inputs, outputs = self.sizes.sites[name]
        if (stored := self.tensors.get(f"{name}.weight")) is not None:
            return self.constant(f"{name}.weight", np.ascontiguousarray(stored.read().T))
        return self.weight(f"{name}.weight", (inputs, outputs), gain=1.0 / math.sqrt(inputs))

    def weight(self, name: str, shape: tuple[int, int], gain: float) -> ir.Value:
        """A weight as it is stored, or so large a one at random."""
        stored = self.tensors.get(name)
        return self.constant(name, stored.read() if stored is not None else gain * np.resize(self.some, shape))

    def constant(self, name: str, array: NDArray[Any]) -> ir.Value:
        """An initializer."""
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(value.const_value.dtype)  # type: ignore[union-attr]
        self.initializers.append(value)
        return value

    def op(self, op_type: str, inputs: list[ir.Value], name: str, **attributes: Any) -> ir.Value:
        """A node, by what it gives."""
        node = ir.node(op_type, inputs, attributes, name=name)
        [value] = node.outputs
        value.name = f"{name}.out"
        self.nodes.append(node)
        return value
