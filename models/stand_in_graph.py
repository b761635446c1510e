"""The graph of a decoder of given sizes, in the few operators that opset 23 has for one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spq_graph.models.headers import Stored

EMBEDDING: Final = "model.embed_tokens"
NORM: Final = "model.norm"
HEAD: Final = "lm_head"
# Numbers of a layer and of a head that run in a second, and how many layers.
_MOST_LAYER, _MOST_HEAD, _LAYERS = 8_000_000, 32_000_000, 2
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
        return layers | {HEAD: (self.width, self.vocabulary)}

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


def theta_of(config: Mapping[str, Any]) -> Any:
    """The base of the rotary positions."""
    given = config.get("rope_parameters")
    return (given if isinstance(given, dict) else config).get("rope_theta", 10_000.0)


class Weaver:
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
        value = self.norm(NORM, value)
        tied = f"{HEAD}.weight" not in self.tensors
        head = self.op("Transpose", [table], f"{HEAD}.turned", perm=[1, 0]) if tied else self.turned(HEAD)
        logits = self.op("MatMul", [value, head], HEAD)
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
        angles = np.outer(np.arange(positions), float(theta_of(self.config)) ** (-np.arange(half) / half))
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
