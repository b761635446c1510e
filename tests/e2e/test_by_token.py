"""Scales by token from the command line: kept sites in them, everything in them, with the library and without."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.models.source import REFERENCE
from spq_graph.runtime.sessions.library import OVERRIDE, library_path
from tests.support.command import Case, Result, done, spq
from tests.support.decoders import write_decoder, write_ids

needs_library = pytest.mark.skipif(library_path() is None, reason="the operator library was not built here")
KEPT, EVALUATION = "layers.1.mlp.down_proj", REFERENCE / "evaluation.txt"
EVERYWHERE = 'overrides = [{pattern = "*", precision = "w8a8_token"}, {pattern = "lm_head", precision = "fp32"}]\n'


def quantized(case: Case, out: Path, *options: object) -> Result:
    data = ["--calibration", case.calibration, "--spike-ratio", 1e6]
    return done("quantize", case.model, "-o", out, *data, *options)


@pytest.fixture(scope="module")
def made(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("by_token") / "out"
    quantized(case, out, "--no-eval", "--keep", KEPT, "--high-precision", "w8a8_token")
    return out


@pytest.fixture(scope="module")
def everywhere(exports: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded reference with every site by token, but for its head."""
    folder = tmp_path_factory.mktemp("everywhere")
    (folder / "recipe.toml").write_text(EVERYWHERE, encoding="utf-8")
    asked = ["--recipe", folder / "recipe.toml", "--no-eval", "--spike-ratio", 1e6, "--calibration-tokens", 1024]
    done("quantize", "reference", "-o", folder / "out", *asked)
    return folder / "out"


def test_the_plan_and_the_file_hold_them(made: Path) -> None:
    plan = json.loads((made / "plan.json").read_text(encoding="utf-8"))
    assert [s["key"] for s in plan["sites"] if s["precision"] == "w8a8_token"] == [KEPT]
    model = onnx.load(made / "model.onnx", load_external_data=False)
    assert [node.op_type for node in model.graph.node if node.domain == "spq"] == ["Int8MatMulByToken"]
    assert [(f.domain, f.name) for f in model.functions] == [("spq", "Int8MatMulByToken")]
    onnx.checker.check_model(made / "model.onnx", full_check=True)
    shown = done("inspect", made / "model.onnx", "--json").json
    assert [s["precision"] for s in shown["sites"]].count("w8a8_token") == 1


@needs_library
def test_the_report_says_that_the_library_ran(made: Path) -> None:
    report = json.loads((made / "report.json").read_text(encoding="utf-8"))
    assert report["executed"]["Int8MatMulByToken"] == 1
    assert report["kernels"][KEPT] == "Int8MatMulByToken"
    assert (report["by_token"]["sites"], report["by_token"]["kernels"]) == (1, 1)
    assert "1 by token in the operator library" in (made / "report.html").read_text(encoding="utf-8")


def test_verify_and_apply_hold_it_to_the_plan(made: Path, case: Case, tmp_path: Path) -> None:
    done("verify", made, case.model)
    told = done("apply", case.model, made / "plan.json", "-o", tmp_path / "out", "--json").json
    assert told["by_token"]["sites"] == 1
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (made / "model.onnx").read_bytes()


def test_without_the_library_integer_kernels_are_proved(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE, "")
    result = quantized(case, tmp_path / "out", "--no-eval", "--keep", KEPT, "--high-precision", "w8a8_token")
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["by_token"] == {"sites": 1, "kernels": 0, "library": None}
    assert report["kernels"][KEPT] == "MatMulInteger"
    assert any("in ONNX Runtime's integer kernels" in warning for warning in report["verdict"]["warnings"])
    assert "1 by token, as the function in the file" in " ".join(result.out.split())


@needs_library
def test_the_reference_loses_nothing_and_says_the_same_without_the_library(
    everywhere: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def perplexity(model: object) -> float:
        return float(done("eval", model, "--text", EVALUATION, "--max-eval-tokens", 4096, "--json").json["perplexity"])

    floating, with_library = perplexity("reference"), perplexity(everywhere)
    monkeypatch.setenv(OVERRIDE, "")
    without = perplexity(everywhere)
    assert with_library == pytest.approx(floating, rel=3e-3)
    assert without != with_library  # other kernels ran
    assert without == pytest.approx(with_library, rel=1e-3)
    told = done("apply", "reference", everywhere / "plan.json", "-o", tmp_path / "out", "--json").json
    assert told["by_token"] == {"sites": 56, "kernels": 0, "library": None}
    assert told["executed"]["MatMulInteger"] == 56


def test_the_ladder_has_a_row_of_everything_by_token(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = quantized(case, out, "--text", case.text, "--keep", KEPT, "--high-precision", "fp8_e5m2", "--json").json
    rows = {row["name"]: row for row in made["report"]["ladder"]}
    row = rows["everywhere_w8a8_token"]
    assert (row["bits"], row["kept"]) == (8, [])
    assert row["kl"] < rows["everywhere"]["kl"]
    assert rows["spike_aware_w8a8_token"]["kept"] == [KEPT]
    assert "quantized everywhere (per token)" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["cuda", "openvino", "portable", "tensorrt"])
def test_other_targets_say_why_not(case: Case, made: Path, tmp_path: Path, target: str) -> None:
    refused = spq("quantize", case.model, "-o", tmp_path / "out", "--target", target, "--high-precision", "w8a8_token")
    assert refused.code == 2
    assert f"target '{target}' cannot run w8a8_token" in " ".join(refused.err.split())
    plan = done("apply", case.model, made / "plan.json", "-o", tmp_path / "made", "--target", target).out
    assert "w8a8_token was planned" in " ".join(plan.split())


def test_where_no_kept_site_does_all_have_scales_by_token(tmp_path: Path) -> None:
    """And other targets, and who asks for them, have static ones."""
    model = write_decoder(tmp_path / "model.onnx", spikes={0: 300.0, 1: 100.0})
    data = ("--calibration", write_ids(tmp_path / "ids.npz"), "--window", 32)
    (tmp_path / "none.toml").write_text("max_kept = 0.0\n", encoding="utf-8")
    asked = ("--recipe", tmp_path / "none.toml", *data, "--text", write_ids(tmp_path / "text.npz", seed=1))
    done("quantize", model, "-o", tmp_path / "out", *asked)
    plan = json.loads((tmp_path / "out" / "plan.json").read_text(encoding="utf-8"))
    layers = [s for s in plan["sites"] if s["layer"] is not None]
    assert {s["precision"] for s in layers} == {"w8a8_token"}
    assert plan["budget_met"]
    assert 0 <= plan["search"]["kl"] < 0.1 * plan["search"]["kl_everywhere"]
    assert plan["search"]["scales"] == "by_token"
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    said = f"0 of {len(layers)} sites stay in high precision, {len(layers)} have scales by token"
    assert said in report["verdict"]["summary"]
    rows = {row["name"]: row for row in report["ladder"]}
    assert rows["spike_aware"]["kept"] == []
    assert rows["spike_aware"]["kl"] < 0.1 * rows["everywhere"]["kl"]
    done("verify", tmp_path / "out", model)
    done("apply", model, tmp_path / "out" / "plan.json", "-o", tmp_path / "other", "--target", "portable")
    portable = json.loads((tmp_path / "other" / "plan.json").read_text(encoding="utf-8"))
    assert {s["precision"] for s in portable["sites"] if s["layer"] is not None} == {"int8"}
    for ask in (("--target", "portable"), ("--preset", "w8a8-static")):
        out = tmp_path / ask[-1]
        done("quantize", model, "-o", out, *asked, "--no-eval", *ask)
        static = json.loads((out / "plan.json").read_text(encoding="utf-8"))
        assert {s["precision"] for s in static["sites"] if s["layer"] is not None} == {"int8"}, ask
