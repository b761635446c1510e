"""Refusals of recipes by name, each made and put right as it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.following import Told

follows = pytest.mark.follows


@follows("spq_graph/documents/preset.py:preset")
def test_a_preset_that_is_not_there(refusal: Told, made: Made, tmp_path: Path) -> None:
    """The nearest one is named, and makes of every layer what it says."""
    given = ["quantize", made.model, "-o", tmp_path / "out", "--calibration", made.data]
    refusal.command(*given, "--preset", "Weight-only")
    near = refusal.error.remedy.removeprefix("pass ").partition(":")[0]
    assert near == "weight-only-8"
    assert near in done("presets").out
    done(*given, "--preset", near)
    sites = json.loads((tmp_path / "out" / "plan.json").read_text())["sites"]
    assert {site["precision"] for site in sites if site["layer"] is not None} == {"w8a8_block"}
    # Head and embedding go by the budget, as with any recipe.
    assert {site["precision"] for site in sites if site["layer"] is None} == {"w8a8_block", "w8a16"}
