"""Attention written out becomes one operator, of the same numbers; and what must stay."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from spq_graph.passes.adapt.attention import ATTENTION_OPSET, FuseAttention
from spq_graph.passes.check.outline import outline
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES
from tests.support.graphs import Array, Builder, after
from tests.support.inserting import applied, plan_for, run

BATCH, LENGTH, KEYS, SIZE, OF_VALUE = 2, 3, 5, 8, 6
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Written:
    """An attention as exporters write it."""

    heads: int = 4
    shared: int = 2
    mask: tuple[int | str, ...] | None = (BATCH, 1, LENGTH, KEYS)
    mask_first: bool = False
    scaled: str = "scores"  # or "query", "key", "turned", "both", "quotient", "no"
    spread: str = "both"  # whose heads are copied: "both", "key" or "none", where sharing is left to MatMul
    opset: int = 21
    axis: int = -1
    turn: tuple[int, ...] = (0, 1, 3, 2)
    middle: str = ""  # an operator between the scores and the softmax
    batch: int | str = BATCH
    length: int | str = LENGTH
    projected: bool = False

    @property
    def factor(self) -> float:
        """Of the scores."""
        return {"no": 1.0, "both": 0.25}.get(self.scaled, 0.5)

    def repeat(self, b: Builder, value: str, keys: int | str, size: int) -> str:
        """Heads copied for the query heads that share them, as transformers does."""
        times = self.heads // self.shared
        apart = b.op("Unsqueeze", value, b.const([2], np.int64))
        spread = b.op("Expand", apart, b.const([1, 1, times, 1, 1], np.int64))
        return str(b.op("Reshape", spread, b.const([BATCH, self.heads, keys, size], np.int64)))

    def build(self, *more: str) -> tuple[onnx.ModelProto, list[str]]:
        """The graph, and names of what it computes on the way."""
        b = Builder(opset=self.opset)
        half = b.const(0.5, np.float32)
        key, value = "k", "v"
        if self.spread != "none":
            key = self.repeat(b, key, KEYS, SIZE)
        if self.spread == "both":
            value = self.repeat(b, value, KEYS, OF_VALUE)
        query = b.op("Mul", "q", half) if self.scaled in ("query", "both") else "q"
        key = b.op("Mul", half, key) if self.scaled == "key" else key
        turned = b.op("Transpose", key, perm=self.turn)
        turned = b.op("Mul", turned, half) if self.scaled in ("turned", "both") else turned
        scores = product = b.op("MatMul", query, turned)
        if self.scaled == "scores":
            scores = b.op("Mul", scores, half)
        elif self.scaled == "quotient":
            scores = b.op("Div", scores, b.const(2, np.float32))
        if self.middle:
            scores = b.op(self.middle, scores)
        if self.mask is not None:
            scores = b.op("Add", *(["mask", scores] if self.mask_first else [scores, "mask"]))
        probabilities = b.op("Softmax", scores, axis=self.axis)
        output = b.op("MatMul", probabilities, value, name="the mix")
        b.nodes[-1].metadata_props.add(key="kept", value="yes")
        output = b.linear(output, OF_VALUE, 4) if self.projected else output
        inputs: dict[str, Any] = {
            "q": (TensorProto.FLOAT, [self.batch, self.heads, self.length, SIZE]),
            "k": (TensorProto.FLOAT, [self.batch, self.shared, KEYS, SIZE]),
            "v": (TensorProto.FLOAT, [self.batch, self.shared, KEYS, OF_VALUE]),
        }
        if self.mask is not None:
            inputs["mask"] = (TensorProto.FLOAT, list(self.mask))
        steps = {"probabilities": probabilities, "product": product}
        outputs: dict[str, Any] = dict.fromkeys((output, *(steps[m] for m in more)), (TensorProto.FLOAT, None))
        return onnx.shape_inference.infer_shapes(b.model(inputs, outputs)), [output, product, probabilities]

    def feeds(self) -> dict[str, Array]:
        """Random ones, and a mask that hides the last key and adds some number to the others."""
        rng = np.random.default_rng(0)
        normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
        found = {
            "q": normal(BATCH, self.heads, LENGTH, SIZE),
            "k": normal(BATCH, self.shared, KEYS, SIZE),
            "v": normal(BATCH, self.shared, KEYS, OF_VALUE),
        }
        if self.mask is not None:
            sizes = {"batch": BATCH, "length": LENGTH}
            found["mask"] = normal(*(sizes.get(d, d) for d in self.mask))  # type: ignore[call-overload]
            found["mask"][..., -1] = LOWEST
        return found

    def expected(self) -> Array:
        """In float64."""
        feeds = {name: array.astype(np.float64) for name, array in self.feeds().items()}
        key, value = (feeds[name].repeat(self.heads // self.shared, axis=1) for name in "kv")
        scores = self.factor * feeds["q"] @ key.swapaxes(-1, -2) + feeds.get("mask", np.zeros(1))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=-1, keepdims=True) @ value)


def fused(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    return after(FuseAttention(), proto)


MASKS: tuple[tuple[int | str, ...] | None, ...] = (
    None,
    (BATCH, 1, LENGTH, KEYS),
    (1, 1, LENGTH, KEYS),
    (BATCH, 4, LENGTH, KEYS),
    (1, 4, LENGTH, KEYS),
)
TAKEN = [
    *(Written(heads=4, shared=shared) for shared in (1, 2, 4)),
    *(Written(mask=mask) for mask in MASKS),
    Written(mask_first=True),
    *(Written(scaled=scaled) for scaled in ("no", "query", "key", "turned", "both", "quotient")),
    Written(axis=3),
    Written(shared=4, spread="none"),
    Written(shared=1, spread="none"),
    Written(shared=4, spread="none", batch="batch", length="length", mask=("batch", 1, "length", KEYS)),
    *(Written(opset=opset) for opset in (13, 17, 18, 19, 20, 22, 23, 24)),
]


@pytest.mark.parametrize("written", TAKEN, ids=str)
def test_it_becomes_one_operator(written: Written) -> None:
    """The same as in float64, in ONNX Runtime and in onnx's own evaluator, within what float32 and its order give."""
    proto, [output, *_] = written.build()
    result, modified = fused(proto)
    assert modified
    (node,) = result.graph.node
    assert (node.op_type, node.name, list(node.output)) == ("Attention", "the mix", [output])
    assert [(p.key, p.value) for p in node.metadata_props] == [("kept", "yes")]
    assert {o.domain: o.version for o in result.opset_import}[""] == max(ATTENTION_OPSET, written.opset)
    assert not fused(result)[1]
    feeds, wanted = written.feeds(), written.expected()
    for found in (run(proto, feeds)[0], run(result, feeds)[0], ReferenceEvaluator(result).run(None, feeds)[0]):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


STAYING = [
    Written(mask=(BATCH, 1, 1, KEYS)),  # ONNX Runtime does not spread a mask over the length
    Written(mask=(BATCH, 1, LENGTH, 1)),
    Written(mask=(LENGTH, KEYS)),
    Written(shared=4, spread="none", length="length", mask=(BATCH, 1, "other", KEYS)),
    Written(shared=4, spread="none", batch="batch", mask=(BATCH, 1, LENGTH, KEYS)),
    Written(shared=1, spread="key"),
    Written(axis=2),
    Written(middle="Tanh"),
    Written(heads=BATCH, spread="none", turn=(1, 0, 3, 2), mask=None),
]


@pytest.mark.parametrize("written", STAYING, ids=str)
def test_what_the_operator_would_not_take_stays(written: Written) -> None:
    proto, _ = written.build()
    result, modified = fused(proto)
    assert not modified
    assert {node.op_type for node in result.graph.node} >= {"MatMul", "Softmax"}
    assert {o.domain: o.version for o in result.opset_import}[""] == written.opset


def test_probabilities_that_the_graph_gives_stay() -> None:
    proto, _ = Written().build("probabilities")
    assert not fused(proto)[1]


def test_scores_that_the_graph_gives_are_kept_beside_it() -> None:
    written = Written()
    proto, [output, product, _] = written.build("product")
    result, modified = fused(proto)
    assert modified
    assert [value.name for value in result.graph.output] == [output, product]
    for found, wanted in zip(run(result, written.feeds()), run(proto, written.feeds()), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_graph_that_cannot_be_lifted_stays() -> None:
    proto, [output, *_] = Written(opset=18).build()
    proto.graph.node.append(helper.make_node("GridSample", [output, "grid"], ["sampled"], name="odd"))
    proto.graph.input.append(helper.make_tensor_value_info("grid", TensorProto.FLOAT, [BATCH, 2, 2, 2]))
    proto.graph.output.append(helper.make_tensor_value_info("sampled", TensorProto.FLOAT, None))
    graph = ir.from_proto(proto)
    before = outline(graph)
    assert not FuseAttention()(graph).modified
    assert (outline(graph), graph.opset_imports[""]) == (before, 18)


def test_rows_of_padding() -> None:
    """Where every key is masked nothing is attended to: zero, and no other row changes."""
    written = Written()
    proto, _ = written.build()
    feeds = written.feeds()
    feeds["mask"][1, :, 0] = LOWEST
    result = run(fused(proto)[0], feeds)[0]
    before = run(proto, feeds)[0]
    assert not result[1, :, 0].any()
    result[1, :, 0] = before[1, :, 0]
    np.testing.assert_allclose(result, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", PROFILES)
def test_where_it_pays(tmp_path: Path, target: str) -> None:
    """ONNX Runtime's CPU provider gets the operator; the others keep what the exporter wrote."""
    proto, _ = Written(projected=True).build()
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    plan = plan_for(path, Written().feeds(), Precision.INT8, target=target)
    ops = [node.op_type for node in onnx.load(applied(path, plan)).graph.node]
    assert ("Attention" in ops, "Softmax" in ops) == ((True, False) if target == "cpu" else (False, True))
