"""A minimal decoder that runs: embedding, attention in the forms that exporters give it, GLU or experts, a head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, TensorProto, helper

from tests.support.graphs import CONTRIB, Array, Builder, Glu, Naming, write_glu

AttentionForm = Literal["plain", "qk_norm", "packed", "GroupQueryAttention", "MultiHeadAttention", "Attention"]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A minimal decoder: embedding, layers of attention and GLU, a head.

    Attributes:
        glu: how its GLU blocks are written; its width is the model's.
        attention: how its attention is written.
        rope: rotary embedding, from tables of cosines and sines.
        layers, heads, kv_heads, vocab: sizes; fewer kv_heads are repeated to the heads.
        tied: the head is the transposed embedding.
        experts: with more than one, a router and that many experts a layer, each weighed for every token.
        routed: experts get only the tokens that chose them, as many as that are, and the last expert gets none.
        capped: tanh soft cap on the logits.
        cache: keys and values of earlier tokens come in, and go out with those of the new ones; where attention is
            written out, or ONNX's own of opset 23.
        qkv_bias: separate projections of query, key and value have one.
    """

    glu: Glu = field(default_factory=Glu)
    attention: AttentionForm = "plain"
    rope: bool = True
    layers: int = 2
    heads: int = 2
    kv_heads: int = 2
    vocab: int = 16
    tied: bool = False
    experts: int = 1
    routed: bool = False
    capped: bool = False
    cache: bool = False
    qkv_bias: bool = False

    @property
    def caches(self) -> dict[str, str]:
        """By input of the cache, the output that continues it."""
        parts = [f"{layer}.{part}" for layer in range(self.layers if self.cache else 0) for part in ("key", "value")]
        return {f"past_key_values.{part}": f"present.{part}" for part in parts}


_PLAIN = Decoder()


# What differs between decoders where their products are concerned.
SHAPES = {
    "plain": Decoder(),
    "bias, packed": Decoder(attention="packed", glu=Glu(packing="split", bias=True, form="transpose")),
    "tied": Decoder(tied=True),
    "grouped": Decoder(kv_heads=1),
}


def decoder(
    shape: Decoder = _PLAIN, *, opset: int = 21, naming: Naming = "dynamo", dtype: type[np.generic] = np.float32
) -> ModelProto:
    """A decoder over input_ids, attention_mask and position_ids, int64 [batch, sequence], that returns logits."""
    b = Builder(opset, naming, dtype)
    width = shape.glu.width
    b.module = "model.embed_tokens"
    embedding = b.const(b.random(shape.vocab, width, scale=1.0))
    hidden = b.op("Gather", embedding, "input_ids")
    mask = _causal_mask(b, shape.cache)
    for layer in range(shape.layers):
        path = f"model.layers.{layer}"
        b.module = path
        attended = _attention(b, _rms_norm(b, hidden, width), mask, shape, f"{path}.self_attn")
        b.module = path
        hidden = b.op("Add", hidden, attended)
        fed = _feed_forward(b, _rms_norm(b, hidden, width), shape, f"{path}.mlp")
        b.module = path
        hidden = b.op("Add", hidden, fed)
    b.module = "model.norm"
    hidden = _rms_norm(b, hidden, width)
    b.module = "lm_head"
    weight = b.op("Transpose", embedding, perm=[1, 0]) if shape.tied else b.const(b.random(width, shape.vocab))
    if shape.capped:
        cap = b.number(30.0)
        b.op("Mul", b.op("Tanh", b.op("Div", b.op("MatMul", hidden, weight), cap)), cap, outputs=["logits"])
    else:
        b.op("MatMul", hidden, weight, outputs=["logits"])
    both = (TensorProto.INT64, ["batch", "sequence"])
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = dict.fromkeys(("input_ids", "attention_mask", "position_ids"), both)
    outputs = {"logits": (kind, ["batch", "sequence", shape.vocab])}
    for past, present in shape.caches.items():
        sizes = ["batch", shape.kv_heads, "past", width // shape.heads]
        inputs[past], outputs[present] = (kind, sizes), (kind, [*sizes[:2], "total", sizes[3]])
        inputs["attention_mask"] = (TensorProto.INT64, ["batch", "total"])
    return b.model(inputs, outputs)


def _axes(b: Builder, op_type: str, value: str, axes: Sequence[int], since: int = 13, **attributes: Any) -> str:
    """An operator whose axes are an input since some opset, and an attribute before it."""
    if b.opset >= since:
        return str(b.op(op_type, value, b.const(axes, np.int64), **attributes))
    return str(b.op(op_type, value, axes=list(axes), **attributes))


def _rms_norm(b: Builder, value: str, width: int) -> str:
    mean = _axes(b, "ReduceMean", b.op("Mul", value, value), [-1], since=18, keepdims=1)
    root = b.op("Sqrt", b.op("Add", mean, b.number(1e-5)))
    return str(b.op("Mul", b.op("Div", value, root), b.const(1 + b.random(width, scale=0.1), b.dtype)))


def _causal_mask(b: Builder, cache: bool) -> str:
    """0 where a token may look, a large negative number elsewhere: [batch, 1, sequence, all tokens]."""
    if cache:
        new, total = (
            b.op("Gather", b.op("Shape", name), b.const(1, np.int64)) for name in ("input_ids", "attention_mask")
        )
        first, one = b.op("Sub", total, new), b.const(1, np.int64)
        keys = _axes(b, "Unsqueeze", b.op("Range", b.const(0, np.int64), total, one), [0, 1, 2])
        queries = _axes(b, "Unsqueeze", b.op("Range", first, total, one), [0, 1, 3])
    else:
        keys, queries = (_axes(b, "Unsqueeze", "position_ids", axes) for axes in ([1, 2], [1, 3]))
    looks = b.op("LessOrEqual", keys, queries)
    there = b.op("Cast", _axes(b, "Unsqueeze", "attention_mask", [1, 2]), to=TensorProto.BOOL)
    return str(b.op("Where", b.op("And", looks, there), b.number(0.0), b.number(-1e4)))


def _heads(b: Builder, value: str, heads: int, size: int) -> str:
    split = b.op("Reshape", value, b.const([0, 0, heads, size], np.int64))
    return str(b.op("Transpose", split, perm=[0, 2, 1, 3]))


def _rotate(b: Builder, value: str, size: int) -> str:
    angles = np.outer(np.arange(64), 10.0 ** -np.arange(0, 1, 2 / size))
    table = np.concatenate([angles, angles], axis=1)
    cosine, sine = (
        _axes(b, "Unsqueeze", b.op("Gather", b.const(wave(table), b.dtype), "position_ids"), [1])
        for wave in (np.cos, np.sin)
    )
    half = size // 2
    low, high = (
        b.op("Slice", value, *(b.const([n], np.int64) for n in (start, end, -1)))
        for start, end in ((0, half), (half, size))
    )
    turned = b.op("Concat", b.op("Neg", high), low, axis=-1)
    return str(b.op("Add", b.op("Mul", value, cosine), b.op("Mul", turned, sine)))


def _attention(b: Builder, value: str, mask: str, shape: Decoder, path: str) -> str:
    width, size = shape.glu.width, shape.glu.width // shape.heads
    small = size * shape.kv_heads
    if shape.attention == "packed":
        b.module = f"{path}.qkv_proj"
        packed = b.linear(value, width, width + 2 * small)
        b.module = path
        q, k, v = b.op("Split", packed, b.const([width, small, small], np.int64), outputs=3, axis=-1)
    else:
        made = []
        for letter, columns in (("q", width), ("k", small), ("v", small)):
            b.module = f"{path}.{letter}_proj"
            made.append(b.linear(value, width, columns, bias=shape.qkv_bias))
        q, k, v = made
    b.module = path
    if shape.attention in ("GroupQueryAttention", "MultiHeadAttention", "Attention"):
        mixed = _fused(b, q, k, v, mask, shape)
    else:
        mixed = _written_out(b, q, k, v, mask, shape, size)
    b.module = f"{path}.o_proj"
    return b.linear(mixed, width, width)


def _fused(b: Builder, q: str, k: str, v: str, mask: str, shape: Decoder) -> str:
    if shape.attention == "GroupQueryAttention":
        b.op("ReduceSum", "attention_mask", b.const([1], np.int64), keepdims=0)
        last = b.op("Cast", b.op("Sub", b.nodes[-1].output[0], b.const(1, np.int64)), to=TensorProto.INT32)
        length = b.op("Gather", b.op("Shape", "attention_mask"), b.const(1, np.int64))
        total = b.op("Cast", length, to=TensorProto.INT32)
        outputs = b.op(
            "GroupQueryAttention",
            q,
            k,
            v,
            "",
            "",
            last,
            total,
            domain=CONTRIB,
            outputs=3,
            num_heads=shape.heads,
            kv_num_heads=shape.kv_heads,
        )
        return str(outputs[0])
    if shape.attention == "MultiHeadAttention":
        return str(b.op("MultiHeadAttention", q, k, v, domain=CONTRIB, num_heads=shape.heads, unidirectional=1))
    if shape.cache:
        pasts = _pasts(b)
        outputs = [f"{b.module}.mixed", *(shape.caches[past] for past in pasts)]
        heads = {"q_num_heads": shape.heads, "kv_num_heads": shape.kv_heads}
        return str(b.op("Attention", q, k, v, mask, *pasts, outputs=outputs, **heads)[0])
    return str(b.op("Attention", q, k, v, q_num_heads=shape.heads, kv_num_heads=shape.kv_heads, is_causal=1))


def _written_out(b: Builder, q: str, k: str, v: str, mask: str, shape: Decoder, size: int) -> str:
    q = _heads(b, q, shape.heads, size)
    k, v = (_heads(b, value, shape.kv_heads, size) for value in (k, v))
    if shape.attention == "qk_norm":
        q, k = (_rms_norm(b, value, size) for value in (q, k))
    if shape.rope:
        q, k = (_rotate(b, value, size) for value in (q, k))
    if shape.cache:
        pasts = _pasts(b)
        for past, value in zip(pasts, (k, v), strict=True):
            b.op("Concat", past, value, axis=2, outputs=[shape.caches[past]])
        k, v = (shape.caches[past] for past in pasts)
    if shape.kv_heads < shape.heads:
        k, v = (_repeat(b, value, shape) for value in (k, v))
    turned = b.op("Transpose", k, perm=[0, 1, 3, 2])
    scores = b.op("Mul", b.op("MatMul", q, turned), b.number(size**-0.5))
    mixed = b.op("MatMul", b.op("Softmax", b.op("Add", scores, mask), axis=-1), v)
    merged = b.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return str(b.op("Reshape", merged, b.const([0, 0, shape.glu.width], np.int64)))


def _pasts(b: Builder) -> list[str]:
    """The inputs that hold keys and values of the layer that is being written."""
    layer = b.module.split(".")[2]
    return [f"past_key_values.{layer}.{part}" for part in ("key", "value")]


def _repeat(b: Builder, value: str, shape: Decoder) -> str:
    """[batch, kv_heads, sequence, size] to as many heads as the queries have."""
    repeats = shape.heads // shape.kv_heads
    apart = _axes(b, "Unsqueeze", value, [2])
    wide = b.op("Expand", apart, b.const([1, 1, repeats, 1, 1], np.int64))
    sizes = b.op("Shape", value)
    parts = [b.op("Slice", sizes, b.const([n], np.int64), b.const([n + 1], np.int64)) for n in (0, 2, 3)]
    goal = b.op("Concat", parts[0], b.const([shape.heads], np.int64), parts[1], parts[2], axis=0)
    return str(b.op("Reshape", wide, goal))


def _feed_forward(b: Builder, value: str, shape: Decoder, path: str) -> str:
    if shape.experts == 1:
        return write_glu(b, value, shape.glu, path)
    if shape.routed:
        return _routed_experts(b, value, shape, path)
    b.module = f"{path}.gate"
    chances = b.op("Softmax", b.linear(value, shape.glu.width, shape.experts), axis=-1)
    b.module = path
    best, chosen = b.op("TopK", chances, b.const([1], np.int64), outputs=2, axis=-1)
    total = None
    for expert in range(shape.experts):
        out = write_glu(b, value, shape.glu, f"{path}.experts.{expert}")
        b.module = path
        mine = b.op("Equal", chosen, b.const(expert, np.int64))
        weighed = b.op("Mul", out, b.op("Where", mine, best, b.number(0.0)))
        total = weighed if total is None else b.op("Add", total, weighed)
    return str(total)


def _routed_experts(b: Builder, value: str, shape: Decoder, path: str) -> str:
    """Two experts for a token: its expert's tokens are picked, and what comes of them is added in their places."""
    b.module = f"{path}.gate"
    flat = b.op("Reshape", value, b.const([-1, shape.glu.width], np.int64))
    handicap = b.const([0.0] * (shape.experts - 1) + [-1e4], b.dtype)
    chances = b.op("Softmax", b.op("Add", b.linear(flat, shape.glu.width, shape.experts), handicap), axis=-1)
    best, chosen = b.op("TopK", chances, b.const([2], np.int64), outputs=2, axis=-1)
    total = b.op("Mul", flat, b.number(0.0))
    for expert in range(shape.experts):
        b.module = path
        mine = b.op("Equal", chosen, b.const(expert, np.int64))
        share = _axes(b, "ReduceSum", b.op("Where", mine, best, b.number(0.0)), [-1], keepdims=1)
        asked = _axes(b, "ReduceMax", b.op("Cast", mine, to=TensorProto.INT32), [-1], since=18, keepdims=0)
        places = b.op("Transpose", b.op("NonZero", asked), perm=[1, 0])
        out = write_glu(b, b.op("GatherND", flat, places), shape.glu, f"{path}.experts.{expert}")
        b.module = path
        weighed = b.op("Mul", out, b.op("GatherND", share, places))
        total = b.op("ScatterND", total, places, weighed, reduction="add")
    return str(b.op("Reshape", total, b.op("Shape", value)))


def token_feeds(batch: int = 2, length: int = 5, vocab: int = 16, seed: int = 0) -> dict[str, Array]:
    """Inputs for a decoder."""
    ids = np.random.default_rng(seed).integers(0, vocab, (batch, length), dtype=np.int64)
    positions = np.broadcast_to(np.arange(length, dtype=np.int64), ids.shape).copy()
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": positions}
