"""Products that share a matrix share what stands for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.passes.apply import apply_plan
from spq_graph.passes.files.save import save_model
from spq_graph.passes.forms.encode import Encoded
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES, Target
from tests.support.graphs import Builder
from tests.support.inserting import activations, plan_for


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Three products over one matrix: plain, behind a Transpose of their own each, and one matrix for itself."""
    builder = Builder()
    matrix, other = builder.const(builder.random(32, 32)), builder.const(builder.random(32, 32))
    value = builder.op("MatMul", "x", matrix)
    value = builder.op("MatMul", builder.op("Relu", value), matrix)
    for _ in range(2):
        value = builder.op("MatMul", builder.op("Relu", value), builder.op("Transpose", matrix, perm=[1, 0]))
    builder.op("MatMul", value, other, outputs=["y"])
    path = tmp_path / "model.onnx"
    onnx.save(builder.model({"x": (1, ["n", 32])}, {"y": (1, ["n", 32])}), path)
    return path


@pytest.mark.parametrize("target", PROFILES)
def test_one_copy_for_a_matrix_and_a_form(shared: Path, target: Target) -> None:
    for precision in filter(PROFILES[target].allows, Precision):
        if precision is Precision.FP32:  # as the graph has it
            continue
        model = apply_plan(shared, plan_for(shared, {"x": activations(5, 32)}, precision, target=target))
        stored = [v for v in model.graph.initializers.values() if isinstance(v.const_value, Encoded)]
        assert len(stored) == 3, precision  # the matrix as it lies, transposed, and the other
        assert max(len(value.uses()) for value in stored) == 2


def test_another_form_has_its_own(shared: Path) -> None:
    def choose(site: object, formats: list[Precision] = [Precision.INT8, Precision.FP16]) -> Precision:  # noqa: B006
        formats.reverse()
        return formats[0]

    model = apply_plan(shared, plan_for(shared, {"x": activations(5, 32)}, choose))
    kinds = [v.const_value.dtype.name for v in model.graph.initializers.values() if isinstance(v.const_value, Encoded)]
    assert sorted(kinds) == ["FLOAT16"] * 3 + ["INT8"] * 2


def test_the_file_holds_it_once_and_computes_the_same(shared: Path, tmp_path: Path) -> None:
    import onnxruntime as ort

    feeds = {"x": activations(5, 32)}
    out = tmp_path / "out.onnx"
    save_model(apply_plan(shared, plan_for(shared, feeds, Precision.W8A8_BLOCK)), out)
    wanted, found = (
        ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0] for path in (shared, out)
    )
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
