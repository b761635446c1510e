"""Too little calibration data is remarked upon wherever ranges are shown, and changes no status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.decisions.enough import LEAST_TOKENS, too_few
from tests.support.command import done
from tests.support.decoders import write_decoder


def test_what_is_too_few() -> None:
    assert too_few(LEAST_TOKENS) is None
    assert "511 tokens only, fewer than 512" in str(too_few(LEAST_TOKENS - 1))
    assert "fewer than 2,048 (one full sequence" in str(too_few(600, 2048))
    assert too_few(2048, 2048) is None


def rows(path: Path, tokens: int) -> Path:
    np.savez(path, input_ids=np.random.default_rng(0).integers(2, 30, (tokens // 20, 20)))
    return path


def test_twenty_tokens_are_remarked_upon_everywhere(tmp_path: Path) -> None:
    model, few = write_decoder(tmp_path / "model.onnx", layers=1), rows(tmp_path / "few.npz", 20)
    given, remark = ["--calibration", few, "--window", 32], "calibrated on 20 tokens only, fewer than 512"
    ranges, plan, out = tmp_path / "r.json", tmp_path / "p.json", tmp_path / "out"

    assert remark in done("calibrate", model, "-o", ranges, *given).out
    assert done("calibrate", model, "-o", ranges, *given, "--json").json["remark"].startswith(remark)
    assert remark in done("plan", model, ranges, "-o", plan, "--window", 32).out
    assert json.loads(plan.read_text())["calibration"]["remark"].startswith(remark)
    assert done("inspect", model, *given, "--json").json["measured"]["remark"].startswith(remark)
    assert "20 tokens only" in " ".join(done("inspect", model, *given).out.split())

    shown = done("quantize", model, "-o", out, "--no-eval", *given)
    assert "20 tokens only" in " ".join(shown.out.replace("│", " ").split())
    report = json.loads((out / "report.json").read_text())
    assert any(warning.startswith(remark) for warning in report["verdict"]["warnings"])
    assert "20 tokens only" in (out / "report.html").read_text()


def test_enough_is_not_remarked_upon_and_the_status_stays(tmp_path: Path) -> None:
    model, text = write_decoder(tmp_path / "model.onnx", layers=1), tmp_path / "text.npz"
    np.savez(text, input_ids=np.random.default_rng(1).integers(2, 30, (40, 20)))
    status = {}
    for tokens in (20, 600):
        data, out = rows(tmp_path / f"{tokens}.npz", tokens), tmp_path / f"out{tokens}"
        done("quantize", model, "-o", out, "--calibration", data, "--text", text, "--window", 32)
        verdict = json.loads((out / "report.json").read_text())["verdict"]
        status[tokens] = verdict["status"]
        assert any("tokens only" in warning for warning in verdict["warnings"]) is (tokens == 20)
    assert set(status.values()) <= {"ready", "not_ready"}


def test_shards_are_judged_together(tmp_path: Path) -> None:
    model, data = write_decoder(tmp_path / "model.onnx", layers=1), rows(tmp_path / "600.npz", 600)
    parts = [tmp_path / f"{part}.json" for part in range(2)]
    for number, part in enumerate(parts):
        given = ["--calibration", data, "--window", 32, "--shard", f"{number}/2", "--json"]
        assert done("calibrate", model, "-o", part, *given).json.get("remark") is None
    merge = ["calibrate", model, "-o", tmp_path / "all.json", "--merge", parts[0], "--json"]
    assert "300 tokens only" in done(*merge).json["remark"]
    assert done(*merge, "--merge", parts[1]).json.get("remark") is None
