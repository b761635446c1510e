"""A LLaMA of any shape with random weights, written straight to ONNX: memory never holds more than one tensor."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

OPSET = 23
TYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a LLaMA."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    stored: str = "fp16"
    cache: bool = False  # keys and values of earlier tokens as inputs and outputs

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor."""
        return self.hidden * max(self.vocabulary, self.intermediate) * TYPES[self.stored].itemsize


SHAPES = {
    "8b": Shape(32, 4096, 14336, 32, 8, 128256),
    "1b": Shape(16, 2048, 8192, 32, 8, 128256),
    "1b-small": Shape(16, 512, 2048, 8, 2, 16000),
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 49152, cache=True),
}


class _Writer:
    """Nodes of one graph, and weights cut out of one pool of random numbers, each from another place."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        self.shape = shape
        self.dtype = TYPES[shape.stored]
        self.tape = ir.tape.Tape()
        self.initializers: list[ir.Value] = []
        generator = np.random.default_rng(seed)
        self.pool = (generator.standard_normal(1 << 22, dtype=np.float32) * 0.02).astype(self.dtype.numpy())

    def weight(self, name: str, *dims: int, ones: bool = False) -> ir.Value:
        """A lazily made weight: normal with deviation 0.02, or ones."""
        start = 7919 * len(self.initializers) % len(self.pool)
        dtype = self.dtype

        def make() -> ir.TensorProtocol:
            count = int(np.prod(dims))
            array = np.ones(count, dtype=dtype.numpy()) if ones else np.resize(np.roll(self.pool, -start), count)
            return ir.tensor(array.reshape(dims), dtype=dtype, name=name)

        tensor = ir.LazyTensor(make, dtype=dtype, shape=ir.Shape(dims), name=name)
        return self._initializer(name, tensor)

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A small constant."""
        return self._initializer(name, ir.tensor(array, name=name))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, type=kind, shape=ir.Shape(tensor.shape.numpy()), const_value=tensor)
        self.initializers.append(value)
        return value

    def op(
        self, path: str, op_type: str, *inputs: ir.Value | None, more: Sequence[ir.Value] = (), **attributes: object
    ) -> ir.Value:
        """A node of a module, and its first output; the others are given."""
        value, *_ = self.tape.op_multi_out(op_type, list(inputs), attributes, outputs=[ir.Value(), *more])
        node = value.producer()
        node.name = f"{path}.{op_type}".replace(".", "/") + f"_{len(self.tape.nodes)}"
        node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", path, op_type])
        value.name = f"{node.name}.out"
        value.dtype = self.dtype
        return value

    def linear(self, path: str, value: ir.Value, rows: int, columns: int) -> ir.Value:
        """A projection without a bias."""
        return self.op(path, "MatMul", value, self.weight(f"{path}.weight", rows, columns))

    def norm(self, path: str, value: ir.Value) -> ir.Value:
        """RMSNorm."""
        scale = self.weight(f"{path}.weight", self.shape.hidden, ones=True)
        return self.op(path, "RMSNormalization", value, scale, axis=-1, epsilon=1e-5)


def model(shape: Shape, positions: int = 2048) -> ir.Model:
    """The graph, over input_ids and position_ids, int64 [batch_size, sequence_length].

    With a cache also over past_key_values.N.key and .value, [batch_size, heads, past_sequence_length, width], which it
    gives back grown by the new tokens as present.N.key and .value.
    """
    w = _Writer(shape)
    size = shape.hidden // shape.heads
    ids, places = (
        ir.Value(name=n, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["batch_size", "sequence_length"]))
        for n in ("input_ids", "position_ids")
    )
    angles = np.outer(np.arange(positions), 500000.0 ** -np.arange(0, 1, 2 / size))
    tables = [w.constant(f"rotary.{f.__name__}", f(angles).astype(w.dtype.numpy())) for f in (np.cos, np.sin)]
    hidden = w.op("model.embed_tokens", "Gather", w.weight("embed_tokens", shape.vocabulary, shape.hidden), ids)
    hidden.shape = ir.Shape(["batch_size", "sequence_length", shape.hidden])
    pasts: list[ir.Value] = []
    presents: list[ir.Value] = []
    for layer in range(shape.layers):
        path = f"model.layers.{layer}"
        past = [_cache(w, f"past_key_values.{layer}.{kind}", "past") for kind in ("key", "value") if shape.cache]
        present = [_cache(w, f"present.{layer}.{kind}", "total") for kind in ("key", "value") if shape.cache]
        pasts, presents = [*pasts, *past], [*presents, *present]
        normed = w.norm(f"{path}.input_layernorm", hidden)
        mixed = _attention(w, f"{path}.self_attn", normed, (places, *tables), past, present)
        hidden = w.op(path, "Add", hidden, mixed)
        normed = w.norm(f"{path}.post_attention_layernorm", hidden)
        gate = w.linear(f"{path}.mlp.gate_proj", normed, shape.hidden, shape.intermediate)
        up = w.linear(f"{path}.mlp.up_proj", normed, shape.hidden, shape.intermediate)
        gated = w.op(f"{path}.mlp.act_fn", "Mul", gate, w.op(f"{path}.mlp.act_fn", "Sigmoid", gate))
        product = w.op(f"{path}.mlp", "Mul", gated, up)
        hidden = w.op(path, "Add", hidden, w.linear(f"{path}.mlp.down_proj", product, shape.intermediate, shape.hidden))
    logits = w.linear("lm_head", w.norm("model.norm", hidden), shape.hidden, shape.vocabulary)
    logits.name, logits.shape = "logits", ir.Shape(["batch_size", "sequence_length", shape.vocabulary])
    graph = ir.Graph(
        [ids, places, *pasts],
        [logits, *presents],
        nodes=w.tape.nodes,
        initializers=w.initializers,
        opset_imports={"": OPSET},
        name="main_graph",
    )
    return ir.Model(graph, ir_version=11)


def _cache(w: _Writer, name: str, tokens: str) -> ir.Value:
    """Keys or values of one layer."""
    shape = ir.Shape(["batch_size", w.shape.kv_heads, f"{tokens}_sequence_length", w.shape.hidden // w.shape.heads])
    return ir.Value(name=name, type=ir.TensorType(w.dtype), shape=shape)


def _attention(
    w: _Writer,
    path: str,
    value: ir.Value,
    rotary: tuple[ir.Value, ir.Value, ir.Value],
    past: list[ir.Value],
    present: list[ir.Value],
) -> ir.Value:
    shape = w.shape
    places, cosine, sine = rotary
    size = shape.hidden // shape.heads
    made = []
    for letter, heads in (("q", shape.heads), ("k", shape.kv_heads), ("v", shape.kv_heads)):
        one = w.linear(f"{path}.{letter}_proj", value, shape.hidden, heads * size)
        made.append(one if letter == "v" else w.op(path, "RotaryEmbedding", one, cosine, sine, places, num_heads=heads))
    counts = {"q_num_heads": shape.heads, "kv_num_heads": shape.kv_heads}
    inputs = [*made, None, *past] if past else made
    mixed = w.op(path, "Attention", *inputs, more=present, is_causal=1, **counts)
    return w.linear(f"{path}.o_proj", mixed, shape.hidden, shape.hidden)


def write(shape: Shape, path: Path) -> Path:
    """Write the model with its weights beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ir.save(model(shape), path, external_data=f"{path.name}.data", size_threshold_bytes=1024)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    print(write(SHAPES[given.shape], given.out))
