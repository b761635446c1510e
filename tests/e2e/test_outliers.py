"""`inspect --outliers`, as it is typed: what it prints, its JSON, and that no file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tests.support.command import Case, contents, done
from tests.support.super_weights import COLUMN, DOWN, LAYER, PROMPT, ROW, WEIGHT, write_super_weight


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_super_weight(tmp_path: Path) -> None:
    path = write_super_weight(tmp_path / "model.onnx")
    before = contents(tmp_path)
    text = done("inspect", path, "--outliers", "--prompt", PROMPT).out
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.split()[:2] == ["layer", str(LAYER)])
    assert row.split()[2:5] == [f"{ROW},", str(COLUMN), f"{WEIGHT:.2f}"]
    assert f"channel {ROW} of" in " ".join(text.split())
    assert "glu_down" not in text, "sites are for who asks for them"
    assert contents(tmp_path) == before


def test_as_json(tmp_path: Path) -> None:
    path = write_super_weight(tmp_path / "model.onnx")
    found = done("inspect", path, DOWN, "--outliers", "--prompt", PROMPT, "--json").json["outliers"]
    assert found.keys() == {
        *("prompt", "tokens", "left_out", "downs", "super_weights", "unexplained", "runs", "complete")
    }
    (one,), (down,) = found["super_weights"], found["downs"]
    assert (one["key"], one["row"], one["column"], one["weight"]) == (DOWN, ROW, COLUMN, WEIGHT)
    assert one.keys() >= {"layer", "expert", "spike", "position", "share", "after", "kl"}
    assert down.keys() == {"key", "layer", "expert", "input", "output", "residual", "column", "unread"}
    peak = {"value", "position", "channel", "to_mean", "to_median", "systematic", "massive"}
    assert down["input"].keys() == down["output"].keys() == down["residual"].keys() == peak
    assert down["column"].keys() == {"channel", "ratio"}
    assert done("inspect", path, "--json").json["outliers"] is None


def test_an_artifact_beside_what_is_measured(case: Case) -> None:
    """With data the sites are listed as well; its tokenizer makes the tokens of the prompt."""
    given = ["inspect", case.out, "--outliers", "--prompt", "1 5 6 7", "--calibration", case.calibration]
    text = " ".join(done(*given).out.split())
    assert "glu_down" in text
    assert "outliers on 4 tokens" in text
    assert "no super weight" in text
