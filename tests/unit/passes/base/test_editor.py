"""What is asked of a graph while it is edited takes no recursion, however long the graph is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from spq_graph.passes.apply import apply_plan
from spq_graph.terms.precision import Precision
from tests.support.graphs import Builder
from tests.support.inserting import plan_for


def test_a_product_in_front_of_a_long_chain(tmp_path: Path) -> None:
    b = Builder()
    value = b.op("MatMul", "x", b.const(b.random(8, 8)))
    for _ in range(3000):
        value = b.op("Identity", value)
    b.op("Relu", value, outputs=["y"])
    onnx.save(b.model({"x": (1, [3, 8])}, {"y": (1, [3, 8])}), tmp_path / "model.onnx")
    plan = plan_for(tmp_path / "model.onnx", {"x": np.ones((3, 8), np.float32)}, Precision.INT8)
    made = apply_plan(tmp_path / "model.onnx", plan)
    assert "DequantizeLinear" in {node.op_type for node in made.graph}
