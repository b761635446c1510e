"""Decoders of a few kilobytes in plain ONNX, so that tests need neither torch nor an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY = 64
LONGEST = 64
BOS = 1


class Weaver:
    """Adds nodes and initializers one by one; a node's output carries the node's name."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, op_type: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def weight(self, name: str, shape: tuple[int, int], edit: Mapping[tuple[int, int], float] | None = None) -> str:
        """A random weight that neither reads nor writes the last, reserved channel of the stream, but where edited."""
        gain = 2.0 if name == "lm_head" else 0.8  # the stream keeps its size without any norm
        array = self.generator.normal(0, gain / np.sqrt(shape[0]), shape).astype(np.float32)
        array[-1, :] = 0
        if not name.endswith(("gate_proj", "up_proj", "lm_head")):
            array[:, -1] = 0
        for (row, column), value in (edit or {}).items():
            array[row, column] = value
        return self.constant(f"{name}.weight", array)

    def linear(
        self, value: str, name: str, shape: tuple[int, int], edit: Mapping[tuple[int, int], float] | None = None
    ) -> str:
        return self.op("MatMul", [value, self.weight(name, shape, edit)], name)


def write_decoder(
    path: Path,
    *,
    layers: int = 3,
    width: int = 32,
    hidden: int = 48,
    spikes: Mapping[int, float] | None = None,
    seed: int = 0,
    glu: bool = True,
    external: bool = False,
    broken_layer: int | None = None,
    fixed: tuple[int, int] | None = None,
    positions: bool = False,
    cache: bool = False,
) -> Path:
    """Write a decoder with causal attention and SwiGLU.

    Args:
        path: the .onnx file.
        layers, width, hidden: its size.
        spikes: by layer, the activation that BOS alone causes in front of down_proj; nothing reads it.
        seed: of its weights.
        glu: whether the feed-forward blocks have a gate.
        external: keep the weights in a file of their own.
        broken_layer: where the gate's weight holds infinity.
        fixed: batch size and length that the graph insists on.
        positions: whether it takes position_ids and reads them.
        cache: whether it takes keys and values and returns them.
    """
    w = Weaver(seed)
    embedding = w.generator.normal(0, 1, (VOCABULARY, width)).astype(np.float32)
    embedding[:, -1] = np.arange(VOCABULARY) == BOS
    stream = w.op("Gather", [w.constant("embed_tokens.weight", embedding), "input_ids"], "embed_tokens")
    if positions:
        table = w.generator.normal(0, 1, (LONGEST, width)).astype(np.float32)
        table[:, -1] = 0
        here = w.op("Gather", [w.constant("positions.weight", table), "position_ids"], "positions")
        stream = w.op("Add", [stream, here], "placed")
    bias = _mask(w, cache)
    for layer in range(layers):
        name = f"layers.{layer}"
        mixed = _attention(w, stream, bias, f"{name}.self_attn", width, layer if cache else None)
        stream = w.op("Add", [stream, mixed], f"{name}.after_attention")
        spike = (spikes or {}).get(layer, 0.0)
        edits = ({(width - 1, hidden - 1): 8.0}, {(width - 1, hidden - 1): spike / 7.9973}) if spike else ({}, {})
        if layer == broken_layer:
            edits = ({(0, 0): np.inf}, {})
        gate = w.linear(stream, f"{name}.mlp.gate_proj", (width, hidden), edits[0])
        inner = w.op("Mul", [gate, w.op("Sigmoid", [gate], f"{name}.mlp.sigmoid")], f"{name}.mlp.silu")
        if glu:
            up = w.linear(stream, f"{name}.mlp.up_proj", (width, hidden), edits[1])
            inner = w.op("Mul", [inner, up], f"{name}.mlp.product")
        down = w.linear(inner, f"{name}.mlp.down_proj", (hidden, width))
        stream = w.op("Add", [stream, down], f"{name}.after_mlp")
    w.linear(stream, "lm_head", (width, VOCABULARY))
    w.nodes[-1].output[0] = "logits"
    names = ["position_ids"] if positions else []
    return _save(w, path, external, fixed, names, [(layer, width) for layer in range(layers if cache else 0)])


def _mask(w: Weaver, cache: bool) -> str:
    """[batch, 1, total]-shaped padding plus the causal [length, total], 0 or very negative."""
    causal = np.where(np.tri(LONGEST, dtype=bool), 0, -1e4).astype(np.float32)
    length = w.op("Shape", ["input_ids"], "length", start=1, end=2)
    start, axes = w.constant("zero", np.array([0, 0])), w.constant("axes", np.array([0, 1]))
    end = w.op("Concat", [length, length], "lengths", axis=0)
    if cache:
        total = w.op("Shape", ["attention_mask"], "total", start=1, end=2)
        past = w.op("Sub", [total, length], "past")
        start = w.op("Concat", [past, w.constant("first", np.array([0]))], "start", axis=0)
        end = w.op("Concat", [total, total], "end", axis=0)
    square = w.op("Slice", [w.constant("causal", causal), start, end, axes], "square")
    padding = w.op("Cast", [w.op("Sub", ["attention_mask", w.constant("one", np.array(1))], "minus")], "padding", to=1)
    scaled = w.op("Mul", [padding, w.constant("large", np.array(1e4, np.float32))], "scaled")
    row = w.op("Unsqueeze", [scaled, w.constant("middle", np.array([1]))], "row")
    return w.op("Add", [square, row], "bias")


def _attention(w: Weaver, stream: str, bias: str, name: str, width: int, layer: int | None) -> str:
    q, k, v = (w.linear(stream, f"{name}.{part}_proj", (width, width)) for part in "qkv")
    if layer is not None:
        k, v = (_cached(w, value, f"{layer}.{part}") for part, value in (("key", k), ("value", v)))
    turned = w.op("Transpose", [k], f"{name}.turned", perm=[0, 2, 1])
    scores = w.op("MatMul", [q, turned], f"{name}.scores")
    scale = w.constant(f"{name}.scale", np.array(width**-0.5, np.float32))
    scores = w.op("Mul", [scores, scale], f"{name}.scaled")
    weights = w.op("Softmax", [w.op("Add", [scores, bias], f"{name}.masked")], f"{name}.softmax", axis=-1)
    return w.linear(w.op("MatMul", [weights, v], f"{name}.mixed"), f"{name}.o_proj", (width, width))


def _cached(w: Weaver, value: str, name: str) -> str:
    """Keys or values of all tokens, [batch, total, width]; the cache has one head in front of the length."""
    head = w.constant(f"{name}.head", np.array([1]))
    new = w.op("Unsqueeze", [value, head], f"{name}.new")
    w.op("Concat", [f"past_key_values.{name}", new], f"{name}.grown", axis=2)
    w.nodes[-1].output[0] = f"present.{name}"
    return w.op("Squeeze", [f"present.{name}", head], f"{name}.all")


def _save(
    w: Weaver, path: Path, external: bool, fixed: tuple[int, int] | None, more: list[str], caches: list[tuple[int, int]]
) -> Path:
    batch, length = fixed or ("batch_size", "sequence_length")
    total = "total_length" if caches else length
    shapes = {"input_ids": length, "attention_mask": total} | dict.fromkeys(more, length)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [batch, size]) for name, size in shapes.items()]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, length, VOCABULARY])]
    for layer, width in caches:
        for values, stem, size in ((inputs, "past_key_values", "past"), (outputs, "present", total)):
            shape = [batch, 1, size, width]
            values += [
                helper.make_tensor_value_info(f"{stem}.{layer}.{part}", TensorProto.FLOAT, shape)
                for part in ("key", "value")
            ]
    graph = helper.make_graph(w.nodes, "decoder", inputs, outputs, w.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.save_model(model, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=64)
    return path


def random_ids(rows: int, length: int, *, seed: int = 0, bos: bool = True) -> npt.NDArray[np.int64]:
    """Rows of words, BOS first."""
    ids = np.random.default_rng(seed).integers(3, VOCABULARY, (rows, length))
    if bos:
        ids[:, 0] = BOS
    return ids


def write_ids(path: Path, rows: int = 16, length: int = 32, **keywords: int) -> Path:
    """An .npz of random ids."""
    np.savez(path, input_ids=random_ids(rows, length, **keywords))
    return path
