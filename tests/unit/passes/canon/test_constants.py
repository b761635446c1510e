"""A constant that nodes make of others is computed once a node, whoever reads it, and in memory of its own size."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.canon.constants import Recipe, recipe_of
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.identify import identify
from tests.support.graphs import Array, Builder

FLOAT = onnx.TensorProto.FLOAT


def doubled(b: Builder, value: str, times: int) -> str:
    """Added to itself and halved, so that a value has 2^times ways to the constant, and the same numbers."""
    half = b.const(0.5, np.float32)
    for _ in range(times):
        value = b.op("Mul", b.op("Add", value, value), half)
    return value


def product_of(b: Builder, weight: str, columns: int) -> onnx.ModelProto:
    b.op("MatMul", "x", weight, outputs=["y"])
    return b.model({"x": (FLOAT, ["n", 8])}, {"y": (FLOAT, ["n", columns])})


def recipe(model: onnx.ModelProto) -> Recipe:
    """Of the weight of its one product."""
    graph = ir.from_proto(model).graph
    weight = next(node for node in graph if node.op_type == "MatMul").inputs[1]
    assert weight is not None
    return recipe_of(weight, 21)


@pytest.mark.parametrize("times", [70, 2000])
def test_a_chain_of_values_that_are_read_twice_is_a_weight(tmp_path: Path, times: int) -> None:
    b = Builder(21)
    weight = b.random(8, 12)
    onnx.save(product_of(b, doubled(b, b.const(weight), times), 12), tmp_path / "model.onnx")
    model = load_graph(tmp_path / "model.onnx")
    Canonicalize()(model)
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert [site.shape for site in identify(model).sites] == [(8, 12)]
    [folded] = model.graph.initializers.values()
    assert folded.const_value is not None
    np.testing.assert_array_equal(folded.const_value.numpy(), weight)


def test_each_step_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    b = Builder(21)
    found = recipe(product_of(b, doubled(b, b.const(b.random(8, 12)), 30), 12))
    runs: list[Recipe] = []
    run = Recipe._run

    def counted(step: Recipe, feeds: dict[str, Array], *, real: bool = True) -> Array:
        runs.append(step)
        return run(step, feeds, real=real)

    monkeypatch.setattr(Recipe, "_run", counted)
    found.numbers()
    assert len(runs) == len(found.steps()) == 2 + 2 * 30


def test_what_is_read_no_more_is_let_go() -> None:
    b = Builder(21)
    size = 1 << 20
    found = recipe(product_of(b, doubled(b, b.const(b.random(8, size // 8)), 50), size // 8))
    found.numbers()  # what is imported stays
    tracemalloc.start()
    found.numbers()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 4 * size


def test_much_from_little_is_no_weight() -> None:
    """Sixteen constants that are within bounds each: not when all are held at once, and well one after the other."""
    for together in (False, True):
        b = Builder(21)
        shape = b.const([8, 1 << 20], np.int64)
        total, *others = (b.op("Expand", b.const(b.random(8, 1)), shape) for _ in range(16))
        if together:
            total = b.op("Sum", total, *others)
        for other in () if together else others:
            total = b.op("Add", total, other)
        found = recipe(product_of(b, total, 1 << 20))
        if together:
            with pytest.raises(ValueError, match="too large to be a weight"):
                found.numbers(real=False)
        else:
            assert found.numbers(real=False).shape == (8, 1 << 20)
