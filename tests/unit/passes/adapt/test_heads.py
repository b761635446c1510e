"""Attention takes over the cache and heads that lie side by side, with the same numbers; and what must stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto

from spq_graph.passes.adapt.heads import AppendInAttention, HeadsSideBySide
from tests.support.graphs import Array, Builder, after
from tests.support.inserting import run

BATCH, HEADS, SHARED, LENGTH, PAST, SIZE = 2, 4, 2, 3, 5, 8


@dataclass(frozen=True)
class Written:
    """An Attention as it stands after the first two passes, between products and with a cache."""

    cache: bool = True
    axis: int = -2
    mask: bool = True
    rotary: bool = True
    normed: bool = False  # the query, head by head, between the cut into heads and the turn
    read_elsewhere: str = ""  # what reads the joined keys besides: "shape" or "values"
    one_cache: bool = False  # of the keys alone
    turned_back: bool = True
    merged: int = HEADS * SIZE
    layout: tuple[int, ...] = (0, 2, 1, 3)
    batch: int | str = BATCH

    def build(self) -> onnx.ModelProto:
        b = Builder(opset=23)
        inputs: dict[str, Any] = {}
        operands = []
        for name, heads in (("q", HEADS), ("k", SHARED), ("v", SHARED)):
            inputs[name] = (TensorProto.FLOAT, [self.batch, LENGTH, heads * SIZE])
            value = b.op("Reshape", name, b.const([0, 0, heads, SIZE], np.int64))
            value = b.op("Mul", value, b.const(np.arange(SIZE), np.float32)) if self.normed and name == "q" else value
            value = b.op("Transpose", value, perm=self.layout)
            if self.rotary and name != "v":
                value = b.op("RotaryEmbedding", value, "cosines", "sines")
                inputs |= {n: (TensorProto.FLOAT, [self.batch, LENGTH, SIZE // 2]) for n in ("cosines", "sines")}
            if self.cache and (name == "k" or (name == "v" and not self.one_cache)):
                inputs[f"past {name}"] = (TensorProto.FLOAT, [self.batch, SHARED, PAST, SIZE])
                value = b.op("Concat", f"past {name}", value, axis=self.axis, outputs=[f"present {name}"])
            operands.append(str(value))
        keys = LENGTH + (PAST if self.cache else 0)
        if self.mask:
            inputs["mask"] = (TensorProto.FLOAT, [self.batch, 1, LENGTH, keys])
        outputs = [str(value) for value in operands[1:]] if self.cache and not self.one_cache else []
        if self.read_elsewhere == "shape":
            outputs.append(b.op("Shape", operands[1]))
        elif self.read_elsewhere == "values":
            outputs.append(b.op("Neg", operands[1]))
        result = b.op("Attention", *operands, *(["mask"] if self.mask else []), name="the mix", scale=0.25)
        b.nodes[-1].metadata_props.add(key="kept", value="yes")
        if self.turned_back:
            result = b.op("Transpose", result, perm=[0, 2, 1, 3])
            result = b.op("Reshape", result, b.const([self.batch_size, -1, self.merged], np.int64))
        kinds = {
            value: TensorProto.INT64 if self.read_elsewhere == "shape" and value == outputs[-1] else TensorProto.FLOAT
            for value in outputs
        }
        described = {result: (TensorProto.FLOAT, None), **{value: (kind, None) for value, kind in kinds.items()}}
        return onnx.shape_inference.infer_shapes(b.model(inputs, described))

    @property
    def batch_size(self) -> int:
        """As a Reshape takes it."""
        return self.batch if isinstance(self.batch, int) else 0

    def feeds(self, proto: onnx.ModelProto) -> dict[str, Array]:
        rng = np.random.default_rng(0)
        shapes = {v.name: [d.dim_value or BATCH for d in v.type.tensor_type.shape.dim] for v in proto.graph.input}
        return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def both(written: Written) -> tuple[onnx.ModelProto, onnx.ModelProto, list[bool]]:
    """Before, after both passes, and which of them did something."""
    before = result = written.build()
    modified = []
    for step in (AppendInAttention(), HeadsSideBySide()):
        result, done = after(step, result)
        modified.append(done)
        assert not after(step, result)[1]
    return before, result, modified


def same(before: onnx.ModelProto, result: onnx.ModelProto, written: Written) -> None:
    assert [value.name for value in before.graph.output] == [value.name for value in result.graph.output]
    onnx.checker.check_model(result)
    feeds = written.feeds(before)
    for wanted, found in zip(run(before, feeds), run(result, feeds), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


TAKEN = [
    Written(),
    Written(axis=2),
    Written(mask=False),
    Written(cache=False),
    Written(rotary=False),
    Written(cache=False, rotary=False, mask=False),
    Written(batch="batch"),
]


@pytest.mark.parametrize("written", TAKEN, ids=str)
def test_nothing_is_left_around_it(written: Written) -> None:
    before, result, modified = both(written)
    assert modified == [written.cache, True]
    assert {node.op_type for node in result.graph.node} == {
        "Attention",
        *(["RotaryEmbedding"] if written.rotary else []),
    }
    node = next(node for node in result.graph.node if node.op_type == "Attention")
    assert (node.name, [(p.key, p.value) for p in node.metadata_props]) == ("the mix", [("kept", "yes")])
    assert node.output[0] == before.graph.output[0].name
    assert list(node.output[1:]) == (["present k", "present v"] if written.cache else [])
    numbers = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert numbers == {"scale": 0.25, "q_num_heads": HEADS, "kv_num_heads": SHARED}
    same(before, result, written)


def test_heads_with_a_norm_of_their_own_are_put_together_again() -> None:
    written = Written(normed=True)
    before, result, modified = both(written)
    assert modified == [True, True]
    assert not any(node.op_type == "Transpose" for node in result.graph.node)
    same(before, result, written)


# Keys that others read too: what these compute may lead to the attention, which would then wait for itself.
@pytest.mark.parametrize("written", [Written(read_elsewhere="shape"), Written(read_elsewhere="values")], ids=str)
def test_a_cache_that_others_read_is_appended_to_before(written: Written) -> None:
    before, result, modified = both(written)
    assert modified == [False, False]
    same(before, result, written)


def test_keys_alone_are_no_cache() -> None:
    assert not AppendInAttention()(ir.from_proto(Written(one_cache=True).build())).modified


@pytest.mark.parametrize(
    "written",
    [Written(cache=False, turned_back=False), Written(cache=False, mask=False, merged=HEADS * SIZE // 2)],
    ids=str,
)
def test_heads_that_do_not_come_together_behind_it_stay_apart(written: Written) -> None:
    before, result, modified = both(written)
    assert modified == [False, False]
    same(before, result, written)
