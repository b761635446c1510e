"""FP8 from the command line: kept sites in our operator, with the library and without, and what the report says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.runtime.sessions.library import OVERRIDE, library_path
from tests.support.command import Case, Result, done, spq

needs_library = pytest.mark.skipif(library_path() is None, reason="the operator library was not built here")


KEPT = "layers.1.mlp.down_proj"


def quantized(case: Case, out: Path, *options: object) -> Result:
    """The decoder with one down projection kept by hand."""
    return done(
        "quantize",
        case.model,
        "-o",
        out,
        "--calibration",
        case.calibration,
        "--keep",
        KEPT,
        "--spike-ratio",
        1e6,
        *options,
    )


@pytest.fixture(scope="module")
def made(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fp8") / "out"
    quantized(case, out, "--no-eval", "--high-precision", "fp8_e4m3")
    return out


def perplexity(made: Path, case: Case) -> float:
    return float(done("eval", made, "--text", case.text, "--json").json["perplexity"])


def test_the_plan_and_the_file_hold_fp8(made: Path) -> None:
    plan = json.loads((made / "plan.json").read_text(encoding="utf-8"))
    assert [s["key"] for s in plan["sites"] if s["precision"] == "fp8_e4m3"] == [KEPT]
    model = onnx.load(made / "model.onnx", load_external_data=False)
    calls = [node for node in model.graph.node if node.domain == "spq"]
    assert [node.op_type for node in calls] == ["Fp8MatMul"]
    assert [(f.domain, f.name) for f in model.functions] == [("spq", "Fp8MatMul")]
    onnx.checker.check_model(made / "model.onnx", full_check=True)


def test_inspect_shows_them(made: Path) -> None:
    shown = done("inspect", made / "model.onnx", "--json").json
    assert shown["glu_blocks"] == 3
    assert [s["precision"] for s in shown["sites"]].count("fp8_e4m3") == 1


@needs_library
def test_the_report_says_that_the_library_ran(made: Path) -> None:
    report = json.loads((made / "report.json").read_text(encoding="utf-8"))
    assert report["executed"]["Fp8MatMul"] == 1
    assert (report["fp8"]["sites"], report["fp8"]["kernels"]) == (1, 1)
    assert "operator library" in (made / "report.html").read_text(encoding="utf-8")


@needs_library
def test_apply_says_so_too(made: Path, case: Case, tmp_path: Path) -> None:
    told = done("apply", case.model, made / "plan.json", "-o", tmp_path / "json", "--json").json
    assert (told["fp8"]["sites"], told["fp8"]["kernels"]) == (1, 1)
    assert "1 FP8 in the operator library" in done("apply", case.model, made / "plan.json", "-o", tmp_path / "out").out
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (made / "model.onnx").read_bytes()


@needs_library
def test_without_the_library_the_same_file_says_the_same(
    made: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_library = perplexity(made, case)
    monkeypatch.setenv(OVERRIDE, "")
    without = perplexity(made, case)
    assert with_library != without  # another kernel ran
    assert without == pytest.approx(with_library, rel=1e-3)


def test_without_the_library_the_report_says_so(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "")
    result = quantized(case, tmp_path / "out", "--no-eval", "--high-precision", "w8fp8a16")
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["fp8"] == {"sites": 1, "kernels": 0, "library": None}
    assert any("operator library" in warning for warning in report["verdict"]["warnings"])
    assert "no operator library" in result.out


def test_a_library_that_is_not_there_is_an_error(made: Path, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "/nowhere/libspq.so")
    failed = spq("eval", made, "--text", case.text)
    assert failed.code == 1
    assert "no such operator library" in failed.err


@pytest.mark.parametrize("off", [False, True])
def test_doctor_says_what_runs(off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if off:
        monkeypatch.setenv(OVERRIDE, "")
    found: dict[str, Any] = done("doctor", "--json").json
    kernels = found["targets"]["cpu"]
    assert kernels["int8"] == "MatMulIntegerToFloat"
    assert kernels["w8a8_block"] == kernels["w8a16"] == "MatMulNBits"
    there = library_path() is not None and not off
    expected = "Fp8MatMul" if there else "function"
    assert {kernels[p] for p in ("fp8_e4m3", "fp8_e5m2", "w8fp8a16")} == {expected}
    assert (found["library"]["problem"] is None) == there
    assert found["versions"]["onnxruntime"]
    text = done("doctor").out
    assert "operator library" in text
    assert np.max([len(line) for line in text.splitlines()]) <= 80


def test_the_ladder_has_a_row_for_every_format(case: Case, tmp_path: Path) -> None:
    made = quantized(case, tmp_path / "out", "--text", case.text, "--high-precision", "fp8_e5m2", "--json").json
    rows = {row["name"]: row for row in made["report"]["ladder"]}
    formats = ("fp8_e4m3", "w8fp8a16", "w8a8_block", "fp16")
    assert {f"spike_aware_{name}" for name in formats} <= rows.keys()
    assert "spike_aware_fp8_e5m2" not in rows  # which is the plan's own row
    assert rows["spike_aware_fp8_e4m3"]["kept"] == [KEPT]
    assert rows["spike_aware_fp8_e4m3"]["perplexity"] != rows["spike_aware"]["perplexity"]
    assert rows["spike_aware_fp16"]["bytes"] > rows["spike_aware_fp8_e4m3"]["bytes"]


@pytest.mark.parametrize("choice", ["auto", "fp8"])
def test_what_was_measured_stands_in_the_plan(case: Case, tmp_path: Path, choice: str) -> None:
    plan = done(
        "quantize",
        case.model,
        "-o",
        tmp_path / "out",
        "--calibration",
        case.calibration,
        "--no-eval",
        "--high-precision",
        choice,
        "--json",
    ).json["plan"]
    kept = [site for site in plan["sites"] if site["reason"] == "spike"]
    assert KEPT in {site["key"] for site in kept}
    if choice == "auto":
        measured = plan["search"]["formats"]
        assert measured.keys() >= {"fp8_e4m3", "fp8_e5m2", "w8fp8a16", "w8a8_block", "as_is"}
        eight = {name: kl for name, kl in measured.items() if name not in ("as_is", "fp16")}
        assert {site["precision"] for site in kept} == {min(eight, key=lambda name: eight[name])}
    else:
        for site in kept:
            errors = site["evidence"]["formats"]
            assert set(errors) == {"fp8_e4m3", "fp8_e5m2"}
            assert site["precision"] == min(errors, key=lambda name: errors[name])
