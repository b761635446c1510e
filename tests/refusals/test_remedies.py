"""Refusals around remedies, each made and put right as it says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.following import Told
from tests.support.graphs import Glu

follows = pytest.mark.follows


@follows("spq_graph/documents/remedies.py:wished", "no remedy")
def test_a_remedy_that_is_not_there(refusal: Told, made: Made, tmp_path: Path) -> None:
    given = ["quantize", made.model, "-o", tmp_path / "out", "--calibration", made.data, "--spike-ratio", 50]
    refusal.command(*given, "--remedy", "rotate")
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


@follows("passes/changes/scale.py:ScaleChannels.call", "does not take the factors")
def test_factors_for_what_does_not_take_them(refusal: Told, made: Made, tmp_path: Path) -> None:
    plan, change = smoothed(made, tmp_path)
    change["tensor"] = "embed_tokens.weight"
    _refused_and_made_anew(refusal, made, tmp_path, plan)


@follows("passes/changes/scale.py:ScaleChannels.call", "has factors for")
def test_factors_for_channels_that_are_not_there(refusal: Told, made: Made, tmp_path: Path) -> None:
    plan, change = smoothed(made, tmp_path)
    change["exponents"] = [1, 2, 3]
    _refused_and_made_anew(refusal, made, tmp_path, plan)


@follows("passes/changes/scale.py:ScaleChannels.call", "different factors")
def test_factors_that_heads_with_the_same_values_do_not_share(refusal: Told, made: Made, tmp_path: Path) -> None:
    made = replace(made, model=tmp_path / "model.onnx", data=tmp_path / "ids.npz")
    grouped = decoder(Decoder(heads=4, kv_heads=2, glu=Glu(width=32)))
    onnx.save(onnx.shape_inference.infer_shapes(grouped, data_prop=True), made.model)
    np.savez(made.data, input_ids=np.random.default_rng(0).integers(0, 16, (16, 32)))
    plan, _ = smoothed(made, tmp_path)
    change = next(c for t in plan["treatments"] for c in t["changes"] if c["heads"] is not None)
    change["exponents"][0] += 1 if change["exponents"][0] < 0 else -1
    _refused_and_made_anew(refusal, made, tmp_path, plan)


@follows("passes/changes/scale.py:Scaled._made")
def test_factors_that_would_round_a_weight(refusal: Told, made: Made, tmp_path: Path) -> None:
    model = onnx.load(made.model)
    up = next(t for t in model.graph.initializer if t.name.endswith("layers.0.mlp.up_proj.weight"))
    array = np.array(onnx.numpy_helper.to_array(up))
    array[0, 0] = 3e-38  # what may stand in a file, and no rule would scale
    up.CopyFrom(onnx.numpy_helper.from_array(array, up.name))
    onnx.save(model, tmp_path / "model.onnx")
    given = ["quantize", tmp_path / "model.onnx", "--calibration", made.data, "--spike-ratio", 1e6]
    done(*given, "-o", tmp_path / "with", "--remedy", "smooth")
    said = json.loads((tmp_path / "with" / "plan.json").read_text())
    change = next(c for t in said["treatments"] for c in t["changes"] if t["applied"])
    assert "layers.0" not in change["tensor"]
    change |= {"tensor": up.name, "value": "layers.0.mlp.product.out", "exponents": [8] * array.shape[1]}
    (tmp_path / "plan.json").write_text(json.dumps(said))
    refusal.command("apply", tmp_path / "model.onnx", tmp_path / "plan.json", "-o", tmp_path / "out")
    done(*given, "-o", tmp_path / "out", "--no-remedy", "smooth")


def smoothed(made: Made, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A plan with smoothing, and the first of its changes."""
    ranges, plan = folder / "ranges.json", folder / "plan.json"
    done("calibrate", made.model, "-o", ranges, "--calibration", made.data)
    done("plan", made.model, ranges, "-o", plan, "--spike-ratio", 50, "--remedy", "smooth")
    said = json.loads(plan.read_text())
    return said, next(change for t in said["treatments"] for change in t["changes"])


def _refused_and_made_anew(refusal: Told, made: Made, folder: Path, said: dict[str, Any]) -> None:
    plan = folder / "plan.json"
    plan.write_text(json.dumps(said))
    refusal.command("apply", made.model, plan, "-o", folder / "out")
    done("plan", made.model, folder / "ranges.json", "-o", plan, "--spike-ratio", 50, "--remedy", "smooth")
    done("apply", made.model, plan, "-o", folder / "out")
