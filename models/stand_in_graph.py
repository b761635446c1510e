"""The graph of a decoder of given products, in the few operators that opset 23 has for one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from spq_graph.models.headers import Tensor
from spq_graph.models.layers import Feed, Layer, Product
from spq_graph.models.sizes import HEAD, Sizes

NORM: Final = "model.norm"
_OPSET: Final = 23  # the first with operators for attention, rotary positions and norms
_END: Final = np.iinfo(np.int64).max


def theta_of(config: Mapping[str, Any]) -> Any:
    """The base of the rotary positions."""
    given = config.get("rope_parameters")
    return (given if isinstance(given, dict) else config).get("rope_theta", 10_000.0)


class Weaver:
    """Writes the graph: own weights where they are given, and numbers at random where not.

    What a product takes is made as wide as it is to be, by leaving numbers out or repeating them, where what it follows
    upon is not known, or was narrowed.

    Args:
        sizes: of what is written.
        config: as config.json has it.
        tensors: the model's weights; none for numbers at random.
    """

    def __init__(self, sizes: Sizes, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
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
        table = self.weight(f"{sizes.embedding}.weight", (sizes.vocabulary, sizes.width), gain=1.0)
        value = self.op("Gather", [table, ids], sizes.embedding)
        turns = {head: [*self.rotary(head, positions), places] for head in map(self.head, sizes.layers)}
        for number, layer in enumerate(sizes.layers):
            value = self.layer(f"{sizes.stack}.{number}", layer, value, turns[self.head(layer)])
        value = self.norm(NORM, value)
        tied = f"{HEAD}.weight" not in self.tensors
        head = self.op("Transpose", [table], f"{HEAD}.turned", perm=[1, 0]) if tied else self.turned(HEAD, sizes.head)
        logits = self.op("MatMul", [value, head], HEAD)
        logits.name, logits.type = "logits", ir.TensorType(ir.DataType.FLOAT)
        logits.shape = ir.Shape(["batch", "length", sizes.vocabulary])
        graph = ir.Graph(
            [ids, places], [logits], nodes=self.nodes, initializers=self.initializers, opset_imports={"": _OPSET}
        )
        return ir.Model(graph, ir_version=10)

    def head(self, layer: Layer) -> int:
        """Numbers of a head, which are even."""
        return max(2, layer.out.inputs // self.sizes.heads // 2 * 2)

    def layer(self, at: str, layer: Layer, value: ir.Value, turns: list[ir.Value]) -> ir.Value:
        """One decoder layer, its feed-forward parts side by side."""
        attended = self.attention(at, layer, self.norm(f"{at}.input_layernorm", value), turns)
        value = self.op("Add", [value, attended], f"{at}.attended")
        normed = self.norm(f"{at}.post_attention_layernorm", value)
        for feed in layer.feeds:
            value = self.op("Add", [value, self.feed(at, feed, normed)], f"{at}.{feed.out.path}.added")
        if layer.experts:
            value = self.op("Add", [value, self.mixture(at, layer, normed)], f"{at}.mixture.added")
        return value

    def attention(self, at: str, layer: Layer, normed: ir.Value, turns: list[ir.Value]) -> ir.Value:
        """Queries, keys and values, from one product or several, or in two steps; and what attention makes of them."""
        heads, groups, head = self.sizes.heads, self.sizes.groups, self.head(layer)
        inner = f"{at}.{layer.out.path.rpartition('.')[0]}"
        made: list[tuple[ir.Value, int]] = []
        for reader in layer.readers:
            second = reader.inputs != self.sizes.width and made
            value, wide = made.pop() if second else (normed, self.sizes.width)
            made.append((self.product(at, reader, value, wide), reader.outputs))
        widths = [heads * head, groups * head, groups * head]
        if len(made) != len(widths):
            value, wide = self.joined([value for value, _ in made], f"{inner}.joined"), sum(wide for _, wide in made)
            parts = self.parts(self.fitted(value, wide, sum(widths), f"{inner}.fitted"), widths, f"{inner}.parts")
            made = list(zip(parts, widths, strict=True))
        query, key, read = (
            self.fitted(value, wide, want, f"{inner}.{part}")
            for (value, wide), want, part in zip(made, widths, "qkv", strict=True)
        )
        query = self.by_head(f"{inner}.q_norm", query, heads, head, turns)
        key = self.by_head(f"{inner}.k_norm", key, groups, head, turns)
        numbers = {"q_num_heads": heads, "kv_num_heads": groups, "is_causal": 1}
        mixed = self.op("Attention", [query, key, read], f"{inner}.mixed", **numbers)
        return self.product(at, layer.out, mixed, heads * head)

    def by_head(self, name: str, value: ir.Value, heads: int, head: int, turns: list[ir.Value]) -> ir.Value:
        """Queries or keys, normed head by head where the model does so, and turned by their positions."""
        stored = self.tensors.get(f"{name}.weight")
        if stored is not None and stored.shape == (head,):
            value = self.norm(name, self.shaped(value, [0, 0, heads, head], f"{name}.heads"))
            value = self.shaped(value, [0, 0, heads * head], f"{name}.flat")
        return self.op("RotaryEmbedding", [value, *turns], f"{name}.turned", num_heads=heads)

    def feed(self, at: str, feed: Feed, value: ir.Value) -> ir.Value:
        """A feed-forward part, with SiLU."""
        inner, hidden, width = f"{at}.{feed.out.path.rpartition('.')[0]}", feed.out.inputs, self.sizes.width
        made = [(self.product(at, product, value, width), product.outputs) for product in feed.into]
        if feed.gated and len(made) == 1:
            both = self.fitted(*made[0], 2 * hidden, f"{inner}.both")
            made = [(part, hidden) for part in self.parts(both, [hidden, hidden], f"{inner}.halves")]
        first, *more = (self.fitted(part, wide, hidden, f"{inner}.{n}") for n, (part, wide) in enumerate(made))
        done = self.op("Mul", [first, self.op("Sigmoid", [first], f"{inner}.sigmoid")], f"{inner}.act_fn")
        for up in more:
            done = self.op("Mul", [done, up], f"{inner}.product")
        return self.product(at, feed.out, done, hidden)

    def mixture(self, at: str, layer: Layer, normed: ir.Value) -> ir.Value:
        """Experts, each on as many tokens as the others, and what they give, weighed by what chooses between them."""
        width, chosen, count = self.sizes.width, self.sizes.chosen, len(layer.experts)
        rows = self.joined([self.shaped(normed, [-1, width], f"{at}.rows")] * chosen, f"{at}.repeated", axis=0)
        done = []
        for number, expert in enumerate(layer.experts):
            share = [self.numbers(f"{at}.{number}.{n}", [n]) for n in (number, _END, 0, count)]
            done.append(self.feed(at, expert, self.op("Slice", [rows, *share], f"{at}.share.{number}")))
        value = self.shaped(self.joined(done, f"{at}.gathered", axis=0), [chosen, -1, width], f"{at}.by_choice")
        value = self.op("ReduceSum", [value, self.numbers(f"{at}.first", [0])], f"{at}.summed", keepdims=0)
        value = self.op("Reshape", [value, self.op("Shape", [normed], f"{at}.shape")], f"{at}.mixture")
        for router in layer.routers:
            made = self.product(at, router, normed, width)
            best = ir.node("TopK", [made, self.numbers(f"{at}.{router.path}.k", [1])], num_outputs=2)
            self.nodes.append(best)
            best.name, best.outputs[0].name = f"{at}.{router.path}.best", f"{at}.{router.path}.best.out"
            weight = self.op("Sigmoid", [best.outputs[0]], f"{at}.{router.path}.weight")
            value = self.op("Mul", [value, weight], f"{at}.{router.path}.weighed")
        return value

    def rotary(self, head: int, positions: int) -> list[ir.Value]:
        """Cosines and sines, float32 [positions, head / 2]: RoFormer (arXiv 2104.09864), equation 15."""
        half = head // 2
        angles = np.outer(np.arange(positions), float(theta_of(self.config)) ** (-np.arange(half) / half))
        return [self.constant(f"rotary.{head}.{of.__name__}", of(angles).astype(np.float32)) for of in (np.cos, np.sin)]

    def norm(self, name: str, value: ir.Value) -> ir.Value:
        """A norm by the root of the mean square."""
        stored = self.tensors.get(f"{name}.weight")
        scale = stored.read() if stored is not None else np.ones(self.sizes.width, np.float32)
        epsilon = float(self.config.get("rms_norm_eps", 1e-6))
        return self.op("RMSNormalization", [value, self.constant(f"{name}.weight", scale)], name, epsilon=epsilon)

    def product(self, at: str, product: Product, value: ir.Value, wide: int) -> ir.Value:
        """A product with a weight, of numbers so wide, and its bias where it has one."""
        name = f"{at}.{product.path}"
        value = self.fitted(value, wide, product.inputs, f"{name}.fitted")
        made = self.op("MatMul", [value, self.turned(name, (product.inputs, product.outputs))], name)
        stored = self.tensors.get(f"{name}.bias")
        if stored is None:
            return made
        return self.op("Add", [made, self.constant(f"{name}.bias", stored.read())], f"{name}.biased")

    def turned(self, name: str, shape: tuple[int, int]) -> ir.Value:
        """The weight of a product, [K, N]."""
        if (stored := self.tensors.get(f"{name}.weight")) is not None:
            return self.constant(f"{name}.weight", np.ascontiguousarray(stored.read().T))
        return self.weight(f"{name}.weight", shape, gain=1.0 / math.sqrt(shape[0]))

    def weight(self, name: str, shape: tuple[int, int], gain: float) -> ir.Value:
        """A weight as it is stored, or so large a one at random."""
        stored = self.tensors.get(name)
        return self.constant(name, stored.read() if stored is not None else gain * np.resize(self.some, shape))

    def fitted(self, value: ir.Value, wide: int, want: int, name: str) -> ir.Value:
        """Numbers as wide as they are wanted: some left out, or repeated."""
        if wide < want:
            value = self.joined([value] * -(-want // wide), f"{name}.repeated")
        if want % wide == 0:
            return value
        bounds = [self.numbers(f"{name}.{n}", [n]) for n in (0, want, -1)]
        return self.op("Slice", [value, *bounds], name)

    def joined(self, values: Sequence[ir.Value], name: str, axis: int = -1) -> ir.Value:
        """One behind the other."""
        return self.op("Concat", list(values), name, axis=axis) if len(values) > 1 else values[0]

    def parts(self, value: ir.Value, widths: Sequence[int], name: str) -> list[ir.Value]:
        """Numbers cut into so many."""
        node = ir.node("Split", [value, self.numbers(f"{name}.widths", widths)], {"axis": -1}, num_outputs=len(widths))
        node.name = name
        self.nodes.append(node)
        for number, part in enumerate(node.outputs):
            part.name = f"{name}.{number}.out"
        return list(node.outputs)

    def shaped(self, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        """The same numbers in another shape."""
        return self.op("Reshape", [value, self.numbers(f"{name}.shape", shape)], name)

    def numbers(self, name: str, numbers: Sequence[int]) -> ir.Value:
        """Some integers."""
        return self.constant(name, np.array(numbers, np.int64))

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
