"""Sites that a runtime need not run are no failure: they are listed, by every runtime that is here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

pytest.importorskip("onnxruntime")

from spq_graph.runtime.proof.held import why_absent
from spq_graph.terms.targets import PROFILES
from tests.support.command import done
from tests.support.decoders import write_decoder, write_ids

TARGETS = ["cpu", "openvino", "portable"]
LAYER = "layers.0"
GATE, UP, DOWN, OUT = (
    f"{LAYER}.{name}" for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.o_proj")
)


def _set(model: ModelProto, name: str, edit: Callable[[np.ndarray], np.ndarray]) -> None:
    held = next(entry for entry in model.graph.initializer if entry.name == f"{name}.weight")
    held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(edit(numpy_helper.to_array(held))), held.name))


def _zero(*names: str) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        for name in names:
            _set(model, name, np.zeros_like)

    return edit


def _in_part(model: ModelProto) -> None:
    """Dead channels, and one whose numbers are too small for float32 to have a scale."""
    _set(model, UP, lambda array: array * (np.arange(array.shape[1]) > 3))
    _set(model, GATE, lambda array: array * np.where(np.arange(array.shape[1]) == 7, 1e-38, 1).astype(np.float32))


def _positive(model: ModelProto) -> None:
    """What goes into down_proj is never negative, so that its zero point is 0."""
    _set(model, UP, lambda array: numpy_helper.to_array(_held(model, GATE)))


def _held(model: ModelProto, name: str) -> onnx.TensorProto:
    return next(entry for entry in model.graph.initializer if entry.name == f"{name}.weight")


def _twins(model: ModelProto) -> None:
    """Two products of one value with one stored matrix."""
    nodes = {node.name: node for node in model.graph.node}
    nodes[UP].input[1] = nodes[GATE].input[1]


CASES = {
    "zero weights": (_zero(OUT, DOWN), {OUT, DOWN}),
    "a gate that is zero": (_zero(GATE), {GATE, DOWN}),
    "values that are zero": (_zero(f"{LAYER}.self_attn.v_proj"), {f"{LAYER}.self_attn.v_proj", OUT}),
    "zero in part": (_in_part, set()),
    "never negative": (_positive, set()),
    "twins": (_twins, set()),
}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> str:
    if (absent := why_absent(PROFILES[request.param])) is not None:
        pytest.skip(absent)
    return str(request.param)


@pytest.mark.parametrize("case", CASES)
def test_what_need_not_run_is_listed(case: str, target: str, tmp_path: Path) -> None:
    edit, constant = CASES[case]
    path = write_decoder(tmp_path / "model.onnx", layers=1)
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    out, data = tmp_path / "out", ["--calibration", write_ids(tmp_path / "ids.npz"), "--window", 32]
    given = ["--target", target, "--spike-ratio", 1000]
    shown = " ".join(done("quantize", path, "-o", out, "--no-eval", *data, *given).out.replace("│", " ").split())
    report = json.loads((out / "report.json").read_text())
    assert {key for key, why in report["folded"].items() if why == "constant"} == constant
    assert ("constant, whatever goes in" in shown) is bool(constant)
    assert all(key in shown for key in constant)
    assert ("constant, whatever goes in" in (out / "report.html").read_text()) is bool(constant)
    planned = [
        site["key"] for site in json.loads((out / "plan.json").read_text())["sites"] if site["precision"] == "int8"
    ]
    assert set(planned) <= report["kernels"].keys() | constant

    again = tmp_path / "again"
    applied = done("apply", path, out / "plan.json", "-o", again, "--json").json
    assert applied["folded"] == report["folded"]


def test_twins_that_a_runtime_runs_once_are_named(tmp_path: Path) -> None:
    if (absent := why_absent(PROFILES["openvino"])) is not None:
        pytest.skip(absent)
    path = write_decoder(tmp_path / "model.onnx", layers=1)
    model = onnx.load(path)
    _twins(model)
    onnx.save(model, path)
    data = ["--calibration", write_ids(tmp_path / "ids.npz"), "--window", 32]
    for extra in (["--spike-ratio", 1000], ["--keep", f"{LAYER}.mlp.*", "--high-precision", "w8a16"]):
        out = tmp_path / f"out{len(extra)}"
        done("quantize", path, "-o", out, "--no-eval", *data, "--target", "openvino", *extra)
        report = json.loads((out / "report.json").read_text())
        assert report["folded"] in ({UP: f"the same as {GATE}"}, {GATE: f"the same as {UP}"}), extra
        assert report["kernels"][UP] == report["kernels"][GATE]
