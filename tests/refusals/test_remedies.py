"""Refusals around remedies, each made and put right as it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.following import Told

follows = pytest.mark.follows


@follows("spq_graph/documents/remedies.py:wished", "no remedy")
def test_a_remedy_that_is_not_there(refusal: Told, made: Made, tmp_path: Path) -> None:
    given = ["quantize", made.model, "-o", tmp_path / "out", "--calibration", made.data, "--spike-ratio", 50]
    refusal.command(*given, "--remedy", "prefix")
    named = refusal.error.remedy.removeprefix("one of ").split(", ")[0]
    done(*given, "--remedy", named)
    treatments = json.loads((tmp_path / "out" / "plan.json").read_text())["treatments"]
    assert {treatment["remedy"] for treatment in treatments} == {named}


@follows("spq_graph/documents/remedies.py:wished", "asked for and left out")
def test_a_remedy_that_is_wanted_and_left_out(refusal: Told, made: Made, tmp_path: Path) -> None:
    given = ["quantize", made.model, "-o", tmp_path / "out", "--calibration", made.data, "--spike-ratio", 50]
    refusal.command(*given, "--remedy", "peel", "--no-remedy", "peel")
    done(*given, "--no-remedy", "peel")


@follows("passes/forms/branch.py:channels_of")
def test_a_branch_of_channels_that_are_not_there(refusal: Told, made: Made, tmp_path: Path) -> None:
    ranges, plan = tmp_path / "ranges.json", tmp_path / "plan.json"
    done("calibrate", made.model, "-o", ranges, "--calibration", made.data)
    done("plan", made.model, ranges, "-o", plan, "--spike-ratio", 50, "--remedy", "peel")
    said = json.loads(plan.read_text())
    said["treatments"][0]["changes"][0]["channels"] = [1, 2, 3, 1_000_000]
    plan.write_text(json.dumps(said))
    refusal.command("apply", made.model, plan, "-o", tmp_path / "out")
    done("plan", made.model, ranges, "-o", plan, "--spike-ratio", 50, "--remedy", "peel")
    done("apply", made.model, plan, "-o", tmp_path / "out")
