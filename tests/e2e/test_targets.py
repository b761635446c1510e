"""One plan, every target, from the command line: what ran where it is at hand, and an open word where it is not."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.decisions.retarget import retarget
from spq_graph.documents.plan import Plan
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.files.save import save_model
from spq_graph.runtime.proof.held import check_executed, execute_on, why_absent
from spq_graph.runtime.sessions.openvino import is_here
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.terms.targets import PROFILES, Target
from tests.support.command import Case, done, spq
from tests.support.decoders import random_ids, write_decoder, write_ids

SPIKED = "layers.1.mlp.down_proj"
needs_openvino = pytest.mark.skipif(not is_here(), reason="needs openvino")


def applied(case: Case, folder: Path, target: Target, *options: object) -> tuple[Path, dict[str, Any]]:
    out = folder / target
    return out, done(
        "apply", case.model, case.out / "plan.json", "-o", out, "--target", target, *options, "--json"
    ).json


@pytest.mark.parametrize("target", PROFILES)
def test_the_plan_is_compiled_for_every_target(case: Case, tmp_path: Path, target: Target) -> None:
    out, found = applied(case, tmp_path, target)
    plan = Plan.load(out / "plan.json")
    assert found["target"] == plan.recipe.target == target
    onnx.checker.check_model(out / "model.onnx", full_check=True)
    if why_absent(PROFILES[target]) is None:
        assert sum(count for op, count in found["executed"].items() if _integer(op)) == len(plan.integer_sites) == 20
        assert found["absent"] is None
    else:
        assert found["executed"] == found["providers"] == {}
        assert "pip install" in found["absent"]
    [kept] = [site for site in plan.kept if site.key == SPIKED]
    changed = kept.precision is not Plan.load(case.out / "plan.json").kept[0].precision
    assert changed is (kept.reason == "unsupported_on_target")


def _integer(op: str) -> bool:
    return op in ("MatMulIntegerToFloat", "FullyConnected_int8")


def test_the_terminal_says_what_was_not_executed_and_what_was_replaced(case: Case, tmp_path: Path) -> None:
    keeping(case, Precision.W8A16).save(tmp_path / "plan.json")
    shown = done("apply", case.model, tmp_path / "plan.json", "-o", tmp_path / "out", "--target", "tensorrt").out
    if why_absent(PROFILES["tensorrt"]) is not None:
        assert "not executed here: " in shown
    assert f"{SPIKED} is fp16: spike: " in shown
    assert "w8a16 was planned: TensorRT has 8-bit integers on both sides" in shown


def keeping(case: Case, precision: Precision) -> Plan:
    """The plan with its kept site in a precision."""
    return Plan.load(case.out / "plan.json").with_precisions(lambda s: precision if s.key == SPIKED else s.precision)


def test_a_plan_by_hand_for_what_its_target_cannot_run_is_refused(case: Case, tmp_path: Path) -> None:
    plan = keeping(case, Precision.W8A16)
    recipe = plan.recipe.model_copy(update={"target": "portable"})
    plan.model_copy(update={"recipe": recipe}).save(tmp_path / "plan.json")
    result = spq("apply", case.model, tmp_path / "plan.json", "-o", tmp_path / "out")
    assert result.code == 2
    assert f"{SPIKED} (w8a16)" in result.err
    assert not (tmp_path / "out").exists()
    assert spq("apply", case.model, case.out / "plan.json", "-o", tmp_path / "out", "--target", "tpu").code == 2


@pytest.mark.skipif(why_absent(PROFILES["tensorrt"]) is None, reason="TensorRT is here")
def test_quantize_for_an_absent_target_measures_its_numbers_and_says_so(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = done(
        "quantize",
        case.model,
        "-o",
        out,
        "--calibration",
        case.calibration,
        "--text",
        case.text,
        "--max-eval-tokens",
        200,
        "--target",
        "tensorrt",
        "--high-precision",
        "fp8_e4m3",
    )
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["executed"] == report["providers"] == {}
    assert report["target"]["executed_here"] is False
    assert report["target"]["opset"] == 21
    assert any(warning.startswith("not executed here") for warning in report["verdict"]["warnings"])
    assert "not executed here" in made.out
    rows = {row["name"]: row for row in report["ladder"]}
    assert rows["spike_aware"]["kl"] < 0.5 * rows["everywhere"]["kl"]
    kinds = {node.op_type for node in onnx.load(out / "model.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert {node.domain for node in onnx.load(out / "model.onnx").graph.node} == {""}


@needs_openvino
def test_openvino_runs_every_planned_site_and_says_the_same(case: Case, tmp_path: Path) -> None:
    """With weights of 7 bits, whose sums OpenVINO keeps exact on every processor."""
    out, recipe = tmp_path / "out", tmp_path / "recipe.toml"
    recipe.write_text("reduce_range = true\n", encoding="utf-8")
    done(
        "quantize",
        case.model,
        "-o",
        out,
        "--calibration",
        case.calibration,
        "--text",
        case.text,
        "--max-eval-tokens",
        200,
        "--target",
        "openvino",
        "--quantize-lm-head",
        "--spike-ratio",
        1e6,
        "--recipe",
        recipe,
    )
    report, plan = json.loads((out / "report.json").read_text(encoding="utf-8")), Plan.load(out / "plan.json")
    assert report["executed"]["FullyConnected_int8"] == len(plan.integer_sites)
    assert {s.role for s in plan.integer_sites} >= {Role.LM_HEAD, Role.GLU_UP, Role.ATTN_O}
    assert set(report["providers"]) == {"OpenVINO CPU"}
    assert report["target"]["measured_on"] == "OpenVINO"
    rows = {row["name"]: row for row in report["ladder"]}
    assert rows["weight_only"]["executed"]["FullyConnected_float_weights_int8"] == 3 * 7  # all but the head
    evaluated = ["eval", out, "--text", case.text, "--json"]
    there, here = (done(*evaluated, *more).json["perplexity"] for more in (["--target", "openvino"], []))
    assert there == pytest.approx(here, rel=0.002)
    assert spq(*evaluated, "--target", "cuda").code == 2


@needs_openvino
@pytest.mark.parametrize("behind", [("Identity",), ("Identity", "Identity"), ("Cast",), ("Cast", "Identity")])
def test_a_head_behind_which_the_result_is_only_renamed(tmp_path: Path, behind: tuple[str, ...]) -> None:
    model = onnx.load(write_decoder(tmp_path / "model.onnx", layers=1))
    head = next(node for node in model.graph.node if "logits" in node.output)
    names = [*(f"renamed.{number}" for number in range(len(behind))), "logits"]
    head.output[0] = names[0]
    for kind, (before, name) in zip(behind, pairwise(names), strict=True):
        to = {"to": onnx.TensorProto.FLOAT} if kind == "Cast" else {}
        model.graph.node.append(onnx.helper.make_node(kind, [before], [name], name=f"to.{name}", **to))
    onnx.save(model, tmp_path / "model.onnx")
    data = ["--calibration", write_ids(tmp_path / "ids.npz"), "--window", 16, "--no-eval", "--spike-ratio", 1e6]
    out, more = tmp_path / "out", ["--target", "openvino", "--quantize-lm-head"]
    done("quantize", tmp_path / "model.onnx", "-o", out, *data, *more)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["kernels"]["lm_head"] == "FullyConnected_int8"


@needs_openvino
@pytest.mark.parametrize(("planned", "made"), [(Precision.INT8, Precision.FP16), (Precision.W8A16, Precision.INT8)])
def test_a_site_that_ran_as_something_else_is_named(
    case: Case, tmp_path: Path, planned: Precision, made: Precision
) -> None:
    plan = retarget(Plan.load(case.out / "plan.json"), "openvino")
    site = plan.integer_sites[0]
    path = tmp_path / "model.onnx"
    other = plan.with_precisions(lambda s: made if s.key == site.key else s.precision)
    save_model(apply_plan(case.model, other), path)
    executed = execute_on(PROFILES["openvino"], path, random_ids(1, 8))
    check_executed(executed, other, "")
    asked = plan.with_precisions(lambda s: planned if s.key == site.key else s.precision)
    with pytest.raises(CheckError, match=site.key) as caught:
        check_executed(executed, asked, "model.onnx")
    assert caught.value.exit_code == 3
    assert np.isfinite(executed.providers["OpenVINO CPU"])
