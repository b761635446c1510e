"""Documents that somebody edited, or a disk damaged: the verbs that read them say so, and write nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")

from tests.support.command import done, spq
from tests.support.decoders import write_decoder, write_ids


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and its ranges and plan."""
    folder = tmp_path_factory.mktemp("documents")
    model = write_decoder(folder / "model.onnx", layers=1, spikes={0: 1000.0})
    data = write_ids(folder / "calibration.npz")
    done("calibrate", model, "-o", folder / "ranges.json", "--calibration", data)
    done("plan", model, folder / "ranges.json", "-o", folder / "plan.json")
    return folder


def edited(file: Path, to: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads(file.read_text())
    change(data)
    to.write_text(json.dumps(data))
    arrays = file.with_suffix(".safetensors")
    if arrays.exists():
        to.with_suffix(".safetensors").write_bytes(arrays.read_bytes())
    return to


RANGES: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d["values"].popitem(), "these ranges say nothing of "),
    (lambda d: next(iter(d["values"].values())).update(min=float("nan")), "nan is no number"),
    (lambda d: d.update(arrays="sha256:0"), "not the file that was written with this one"),
]


# Merging knows no model, so not which sites there are.
CASES = [(verb, *case) for verb in ("plan", "quantize", "calibrate") for case in RANGES[verb == "calibrate" :]]


@pytest.mark.parametrize(("verb", "change", "says"), CASES)
def test_ranges(place: Path, tmp_path: Path, verb: str, change: Callable[..., object], says: str) -> None:
    ranges, out = edited(place / "ranges.json", tmp_path / "ranges.json", change), tmp_path / "out"
    commands = {
        "plan": ("plan", place / "model.onnx", ranges, "-o", out),
        "quantize": ("quantize", place / "model.onnx", "--ranges", ranges, "-o", out, "--no-eval"),
        "calibrate": ("calibrate", place / "model.onnx", "--merge", ranges, "-o", out),
    }
    result = spq(*commands[verb])
    assert result.code == 1, result.err
    assert says in result.err
    assert not out.exists()
    assert not out.with_suffix(".json").exists()


def test_ranges_of_an_earlier_version_are_taken_and_said_to_be(place: Path, tmp_path: Path) -> None:
    ranges = edited(place / "ranges.json", tmp_path / "ranges.json", lambda data: data.pop("arrays"))
    result = done("plan", place / "model.onnx", ranges, "-o", tmp_path / "plan.json")
    assert "an earlier version wrote these ranges" in " ".join(result.err.split())
    assert (tmp_path / "plan.json").read_bytes() == (place / "plan.json").read_bytes()
    done("calibrate", place / "model.onnx", "--merge", ranges, "-o", tmp_path / "sealed.json")
    assert (tmp_path / "sealed.json").read_bytes() == (place / "ranges.json").read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["sites"].pop(-2), "the plan has no entry for lm_head"),
        (lambda d: d["sites"].append(d["sites"][0]), "has an entry already, sites.0"),
        (lambda d: d["sites"][0].update(range=[3.0, -3.0]), "the minimum 3 is above the maximum -3"),
        (lambda d: d["sites"][0].update(node="nowhere"), "'nowhere' as node"),
    ],
)
def test_plans(place: Path, tmp_path: Path, change: Callable[..., object], says: str) -> None:
    plan = edited(place / "plan.json", tmp_path / "plan.json", change)
    result = spq("apply", place / "model.onnx", plan, "-o", tmp_path / "out")
    assert result.code == 2, result.err
    assert says in result.err
    assert not (tmp_path / "out").exists()
