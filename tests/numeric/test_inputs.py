"""Decoders whose attention is GroupQueryAttention, in the forms that exporters give their inputs and caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

pytest.importorskip("onnxruntime")

from spq_graph.runtime.sessions.cache import Decoding
from spq_graph.runtime.sessions.inputs import attention_facts, empty_past
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.errors import GraphError
from tests.support.decoders import random_ids
from tests.support.graphs import CONTRIB, Builder

WIDTH, HEADS, SIZE, VOCABULARY, WINDOW = 64, 4, 16, 64, 4
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def write(
    path: Path,
    *,
    lengths: bool = False,
    window: int = -1,
    ring: bool = False,
    described: bool = True,
    width: int | str = "kv_cache_dim",
) -> Runner:
    """Write a decoder of one layer with packed q, k and v.

    Args:
        path: the file.
        lengths: whether the lengths that attention reads are inputs, or computed from the mask.
        window: tokens that attention looks back.
        ring: whether the cache holds only these.
        described: whether the file says the shapes of values.
        width: of a head, as the cache declares it.
    """
    b = Builder()
    hidden = b.op("Gather", b.const(b.random(VOCABULARY, WIDTH, scale=1.0)), "input_ids")
    if lengths:
        last, total = b.op("Identity", "seqlens_k"), "total_sequence_length"
    else:
        ones = b.op("ReduceSum", "attention_mask", b.const([1], np.int64), keepdims=0)
        last = b.op("Cast", b.op("Sub", ones, b.const(1, np.int64)), to=INT32)
        count = b.op("Gather", b.op("Shape", "attention_mask"), b.const(1, np.int64))
        total = b.op("Cast", count, to=INT32)
    angles = np.outer(np.arange(64), 10.0 ** -np.arange(0, 2, 4 / SIZE)).astype(np.float32)
    tables = [b.const(np.cos(angles)), b.const(np.sin(angles))]
    packed = b.linear(hidden, WIDTH, 2 * WIDTH)
    mixed = b.op(
        "GroupQueryAttention",
        packed,
        "",
        "",
        "past_key_values.0.key",
        "past_key_values.0.value",
        last,
        total,
        *tables,
        domain=CONTRIB,
        outputs=["mixed", "present.0.key", "present.0.value"],
        num_heads=HEADS,
        kv_num_heads=2,
        do_rotary=1,
        local_window_size=window,
        **({"sliding_window_cache": 1} if ring else {}),
    )[0]
    hidden = b.op("Add", hidden, b.linear(mixed, WIDTH, WIDTH))
    b.op("MatMul", hidden, b.const(b.random(WIDTH, VOCABULARY)), outputs=["logits"])
    more = {"seqlens_k": (INT32, ["batch"]), "total_sequence_length": (INT32, [])} if lengths else {}
    mask = {} if lengths else {"attention_mask": (INT64, ["batch", "total"])}
    cache = (FLOAT, ["batch", 2, "past", width])
    inputs = {"input_ids": (INT64, ["batch", "length"])} | mask | more
    model = b.model(
        inputs | dict.fromkeys(("past_key_values.0.key", "past_key_values.0.value"), cache),
        {"logits": (FLOAT, ["batch", "length", VOCABULARY])}
        | dict.fromkeys(("present.0.key", "present.0.value"), (FLOAT, ["batch", 2, "grown", width])),
    )
    if described:
        model.graph.value_info.append(onnx.helper.make_tensor_value_info("mixed", FLOAT, ["batch", "length", WIDTH]))
    onnx.save(model, path)
    return Runner(path)


def stepwise(runner: Runner, ids: np.ndarray, steps: tuple[int, ...]) -> np.ndarray:
    state, done, pieces = Decoding(runner, len(ids)), 0, []
    for step in steps:
        pieces.append(state.feed(ids[:, done : done + step]))
        done += step
    assert state.cached
    return np.concatenate(pieces, axis=1)


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("lengths", [True, False])
def test_lengths_and_widths(tmp_path: Path, lengths: bool, described: bool) -> None:
    ids = random_ids(1, 20)
    plain = write(tmp_path / "plain.onnx", width=SIZE)
    other = write(tmp_path / "other.onnx", lengths=lengths, described=described)
    expected = plain.logits(ids, np.ones_like(ids))
    np.testing.assert_allclose(other.logits(ids, np.ones_like(ids)), expected, atol=1e-4)
    for steps in ((20,), (8, *[1] * 12), (1,) * 20):
        np.testing.assert_allclose(stepwise(other, ids, steps), expected, atol=1e-4)


def test_padding_follows_the_text(tmp_path: Path) -> None:
    """Rows of several lengths, as evaluation pads them; generation never pads on the left where attention cannot."""
    runner = write(tmp_path / "model.onnx")
    ids, mask = random_ids(2, 12), np.ones((2, 12), dtype=np.int64)
    mask[1, 7:] = 0
    both = runner.logits(ids, mask)
    alone = runner.logits(ids[1:, :7], mask[1:, :7])
    np.testing.assert_allclose(both[1:, :7], alone, atol=1e-4)
    assert not runner.takes_padding


@pytest.mark.parametrize("steps", [(24,), (1,) * 24, (10, *[1] * 14), (3, 9, 12), (6, 18)])
def test_a_cache_that_keeps_a_window(tmp_path: Path, steps: tuple[int, ...]) -> None:
    """Against the same window as a mask alone, over a cache that keeps everything."""
    ids = random_ids(2, 24)
    whole, ring = write(tmp_path / "whole.onnx", window=WINDOW), write(tmp_path / "ring.onnx", window=WINDOW, ring=True)
    expected = whole.logits(ids, np.ones_like(ids))
    assert np.abs(expected - write(tmp_path / "far.onnx").logits(ids, np.ones_like(ids))).max() > 0.1
    assert (whole.keeps_window, ring.keeps_window) == (False, True)
    np.testing.assert_allclose(ring.logits(ids, np.ones_like(ids)), expected, atol=1e-4)
    np.testing.assert_allclose(stepwise(ring, ids, steps), expected, atol=1e-4)


def test_what_attention_says(tmp_path: Path) -> None:
    pasts = ["past_key_values.0.key", "past_key_values.0.value"]
    write(tmp_path / "model.onnx", lengths=True, window=WINDOW, ring=True, described=False)
    facts = attention_facts(tmp_path / "model.onnx")
    assert facts.widths == dict.fromkeys(pasts, SIZE)
    assert facts.windows == dict.fromkeys(pasts, WINDOW)
    assert (facts.last, facts.total) == ({"seqlens_k"}, {"total_sequence_length"})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (["batch", "heads", "past", "size"], "does not say how many heads and channels it has"),
        (["batch", 2, 128, 16], "room for a fixed number of 128 tokens"),
        ([], "states no shape"),
    ],
)
def test_caches_that_cannot_begin(shape: list[int | str | None], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        empty_past("past.0", shape, 2, np.float32, None)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["batch", 2, "past", 16], (3, 2, 0, 16)),
        ([1, 2, "past", 16], (1, 2, 0, 16)),
        ([2, "batch", 4, "past", 8], (2, 3, 4, 0, 8)),
        (["batch", "past", 32], (3, 0, 32)),
        (["batch", 2, 0, 16], (3, 2, 0, 16)),
    ],
)
def test_empty_pasts(shape: list[int | str | None], expected: tuple[int, ...]) -> None:
    assert empty_past("past.0", shape, 3, np.float16, None).shape == expected


@pytest.mark.parametrize("shape", [["b", -1, "past", 8], ["b", 1 << 62, "past", 8], ["b", 2, "past", 1 << 31]])
def test_sizes_of_a_cache_that_no_cache_has(shape: list[int | str]) -> None:
    with pytest.raises(GraphError, match="cache 'past' has the shape") as caught:
        empty_past("past", shape, 1, np.float32, None)
    assert caught.value.remedy
