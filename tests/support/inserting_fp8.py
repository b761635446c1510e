"""Files with spq::Fp8MatMul in them, and what they should compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from spq_graph.documents.plan import Plan
from spq_graph.passes.numbers.fp8 import ACTIVATIONS, fp8_matmul_reference, unpack_panels
from spq_graph.terms.precision import Precision
from tests.support.eight_bits import BY_NAME
from tests.support.graphs import Array, Builder, LinearForm
from tests.support.inserting import run

FP8 = (Precision.FP8_E4M3, Precision.FP8_E5M2, Precision.W8FP8A16)
EACH = pytest.mark.parametrize("precision", FP8)


def product(
    folder: Path,
    rows: int,
    columns: int,
    *,
    opset: int = 21,
    dtype: Any = np.float32,
    form: LinearForm = "matmul",
    weight: Array | None = None,
) -> tuple[Path, Array]:
    """A file with one projection and no bias, and its weight [K, N]."""
    b = Builder(opset, dtype=dtype, seed=rows)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if weight is None:
        weight = Builder(dtype=dtype, seed=rows).random(rows, columns)
        b.op("Identity", b.linear("x", rows, columns, form=form), outputs=["y"])
    else:
        b.op("MatMul", "x", b.const(weight.astype(dtype)), outputs=["y"], name="product")
    path = folder / "model.onnx"
    onnx.save(b.model({"x": (kind, [None, rows])}, {"y": (kind, [None, columns])}), path)
    return path, weight


def calls(path: Path) -> list[tuple[onnx.NodeProto, dict[str, Array]]]:
    """Every call of the operator in a file, and the constants of that file; panels as bytes."""
    model = onnx.load(path)
    held = {
        t.name: np.frombuffer(t.raw_data, np.uint8).reshape(t.dims) if t.data_type == 17 else numpy_helper.to_array(t)
        for t in model.graph.initializer
    }
    return [(node, held) for node in model.graph.node if (node.domain, node.op_type) == ("spq", "Fp8MatMul")]


def expected(path: Path, plan: Plan, x: Array) -> tuple[Array, Array]:
    """What the one call in a file computes from x, by the reference, and how far any order of float32 sums may be off.

    K products are summed in float32, each step off by half an ulp of the sum of absolute values at most; the division
    by the activation's scale and its undoing, and the scale of the weight, add three roundings more.
    """
    [(node, held)] = calls(path)
    panels, b_scale, a_scale = (held[name] for name in node.input[1:])
    rows, columns = plan.sites[0].shape
    form = ACTIVATIONS[plan.sites[0].precision]
    y = fp8_matmul_reference(x, panels, b_scale, a_scale[()], (rows, columns), activations=form)
    codes = unpack_panels(panels, (rows, columns))
    table = np.array([abs(BY_NAME["fp8_e4m3"].value(code)) for code in range(256)])
    entering = np.abs(x.astype(np.float64)) * (1 + 2.0**-2)  # rounding to two bits of mantissa or more
    total = entering @ (table[codes] * b_scale)
    return y, total * (rows + 3) * 2.0**-24 + np.abs(y.astype(np.float64)) * float(np.finfo(y.dtype).eps)


def check_everywhere(path: Path, plan: Plan, x: Array) -> Array:
    """Check that ONNX Runtime and onnx's reference evaluator compute what the reference says."""
    wanted, bound = expected(path, plan, x)
    [reference] = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
    for found in (run(path, {"x": x})[0], reference):
        assert found.dtype == x.dtype
        assert (np.abs(found.astype(np.float64) - wanted) <= bound).all()
    return wanted
