"""Rotary embedding written out becomes one operator, of the same numbers; and what must stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.adapt.rotary import FuseRotary
from spq_graph.terms.targets import PROFILES
from tests.support.graphs import Array, Builder, after
from tests.support.inserting import run

BATCH, HEADS, LENGTH, SIZE = 2, 3, 5, 8
HALF = SIZE // 2


@dataclass(frozen=True)
class Written:
    """A rotary embedding as exporters write it, of x [batch, heads, length, size], and angles for half of the size."""

    cut: str = "slice"  # "ends" (as far as it goes), "negative", "split" or "uneven"
    sum_turned: bool = False  # the other way round, as are the two below
    times_x: bool = False
    times_turned: bool = False
    last: int = -1  # how the last axis is called
    scaled: bool = False  # YaRN's factor of attention
    source: str = "angles"  # "table", or "other table", whose halves differ; "twice", or "two", of which they are made
    turned: str = "negated"  # "plain", or "swapped": the first half is negated
    heads_axis: int = 1
    opset: int = 23
    x: tuple[int | str, ...] = (BATCH, HEADS, LENGTH, SIZE)
    of_angles: tuple[int | str, ...] = (BATCH, LENGTH, HALF)
    other: bool = False  # what is turned is another value
    layers: int = 1

    def halves(self, b: Builder, x: str) -> list[str]:
        if self.cut in ("split", "uneven"):
            sizes = [HALF, HALF] if self.cut == "split" else [2, SIZE - 2]
            return list(b.op("Split", x, b.const(sizes, np.int64), outputs=2, axis=self.last))
        end = 2**62 if self.cut == "ends" else SIZE
        middle = -HALF if self.cut == "negative" else HALF
        bounds = [(0, middle), (middle, end)]
        cut = lambda pair: [b.const([number], np.int64) for number in (*pair, self.last)]  # noqa: E731
        return [str(b.op("Slice", x, *cut(pair))) for pair in bounds]

    def factor(self, b: Builder, op_type: str) -> str:
        if self.source.endswith("table"):
            table = b.random(16, HALF)
            rows = np.concatenate([table, table + (self.source == "other table")], axis=1)
            found = b.op("Gather", b.const(rows), "positions")
        else:
            other = b.op("Neg", "angles") if self.source == "two" else "angles"
            found = b.op(op_type, b.op("Concat", "angles", other, axis=-1))
        found = b.op("Mul", found, b.const(1.25, np.float32)) if self.scaled else found
        return str(b.op("Unsqueeze", found, b.const([self.heads_axis], np.int64)))

    def layer(self, b: Builder, x: str, factors: list[str]) -> str:
        first, second = self.halves(b, "y" if self.other else x)
        first = b.op("Neg", first) if self.turned == "swapped" else first
        second = b.op("Neg", second) if self.turned == "negated" else second
        turned = b.op("Concat", second, first, axis=self.last)
        pairs = [[x, factors[0]], [turned, factors[1]]]
        swapped = (self.times_x, self.times_turned)
        products = [b.op("Mul", *(pair[::-1] if s else pair)) for pair, s in zip(pairs, swapped, strict=True)]
        total = b.op("Add", *(products[::-1] if self.sum_turned else products), name=f"total {len(b.nodes)}")
        b.nodes[-1].metadata_props.add(key="kept", value="yes")
        return str(total)

    def build(self) -> onnx.ModelProto:
        b = Builder(opset=self.opset)
        factors = [self.factor(b, "Cos"), self.factor(b, "Sin")]
        value = "x"
        for _ in range(self.layers):
            value = self.layer(b, value, factors)
        inputs: dict[str, Any] = {"x": (TensorProto.FLOAT, list(self.x))}
        if self.source.endswith("table"):
            inputs["positions"] = (TensorProto.INT64, [BATCH, LENGTH])
        else:
            inputs["angles"] = (TensorProto.FLOAT, list(self.of_angles))
        if self.other:
            inputs["y"] = inputs["x"]
        return onnx.shape_inference.infer_shapes(b.model(inputs, {value: (TensorProto.FLOAT, None)}))

    def feeds(self) -> dict[str, Array]:
        rng = np.random.default_rng(0)
        found: dict[str, Array] = {"x": rng.standard_normal((BATCH, HEADS, LENGTH, SIZE)).astype(np.float32)}
        if self.source.endswith("table"):
            return found | {"positions": rng.integers(0, 16, (BATCH, LENGTH))}
        return found | {"angles": rng.uniform(0, 500, (BATCH, LENGTH, HALF)).astype(np.float32)}

    def expected(self) -> Array:
        """In float64, by angles."""
        feeds = {name: array.astype(np.float64) for name, array in self.feeds().items()}
        factor = 1.25 if self.scaled else 1.0
        cosines, sines = (factor * f(feeds["angles"])[:, None] for f in (np.cos, np.sin))
        value = feeds["x"]
        for _ in range(self.layers):
            first, second = value[..., :HALF], value[..., HALF:]
            value = np.concatenate([first * cosines - second * sines, first * sines + second * cosines], axis=-1)
        return value


SYMBOLS = Written(x=("batch", HEADS, "length", SIZE), of_angles=("batch", "length", HALF))
TAKEN = [
    *(Written(cut=cut) for cut in ("slice", "ends", "negative", "split")),
    Written(last=3, cut="split"),
    Written(last=3),
    Written(sum_turned=True),
    Written(times_x=True),
    Written(times_turned=True, sum_turned=True),
    Written(scaled=True),
    Written(opset=24),
    SYMBOLS,
    Written(layers=3),
]


@pytest.mark.parametrize("written", TAKEN, ids=str)
def test_it_becomes_one_operator(written: Written) -> None:
    """The same as in float64, in ONNX Runtime and in onnx's own evaluator."""
    proto = written.build()
    result, modified = after(FuseRotary(), proto)
    assert modified
    rotary = [node for node in result.graph.node if node.op_type == "RotaryEmbedding"]
    old = [node for node in proto.graph.node if node.op_type == "Add"]
    assert [node.name for node in rotary] == [node.name for node in old]
    assert [node.output[0] for node in rotary] == [node.output[0] for node in old]
    assert all([(p.key, p.value) for p in node.metadata_props] == [("kept", "yes")] for node in rotary)
    assert not {"Neg", "Add", "Split"} & {node.op_type for node in result.graph.node}
    assert sum(node.op_type == "Slice" for node in result.graph.node) == 2  # cosines and sines, for all layers
    assert not after(FuseRotary(), result)[1]
    feeds, wanted = written.feeds(), written.expected()
    for found in (run(proto, feeds)[0], run(result, feeds)[0], ReferenceEvaluator(result).run(None, feeds)[0]):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_tables_of_cosines() -> None:
    """As they stand in graphs that look them up by position."""
    written = Written(source="table")
    proto = written.build()
    result, modified = after(FuseRotary(), proto)
    assert modified
    np.testing.assert_allclose(run(result, written.feeds())[0], run(proto, written.feeds())[0], rtol=1e-5, atol=1e-5)


STAYING = [
    Written(opset=22),
    Written(source="two"),
    Written(source="other table"),
    Written(cut="uneven"),
    Written(turned="plain"),
    Written(turned="swapped"),
    Written(other=True),
    Written(heads_axis=2, x=(BATCH, LENGTH, HEADS, SIZE)),
    replace(SYMBOLS, of_angles=(1, "length", HALF)),
    replace(SYMBOLS, of_angles=("batch", "other", HALF)),
]


@pytest.mark.parametrize("written", STAYING, ids=str)
def test_what_the_operator_would_compute_otherwise_stays(written: Written) -> None:
    result, modified = after(FuseRotary(), written.build())
    assert not modified
    assert not any(node.op_type == "RotaryEmbedding" for node in result.graph.node)


def test_an_opset_that_the_graph_has_makes_no_other_form_of_it(tmp_path: Path) -> None:
    """What is added, such as the bounds of a slice, is then the same constant in every copy."""
    onnx.save(Written().build(), tmp_path / "model.onnx")
    source = prepared(tmp_path / "model.onnx")
    plain, lifted = (source.adapted(PROFILES["cpu"], opset).graph for opset in (0, 23))
    assert plain is not lifted
    assert [node.op_type for node in plain].count("RotaryEmbedding") == 1
    added = plain.initializers.keys() - source.graph.graph.initializers.keys()
    assert added
    assert all(plain.initializers[name].const_value is lifted.initializers[name].const_value for name in added)
