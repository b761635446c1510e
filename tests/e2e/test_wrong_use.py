"""Requests that are refused: what stands in the way of OUT, options that make no sense, checks that do not hold."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.terms.precision import TABLE, Precision
from tests.support.command import Case, Result, contents, done, spq
from tests.support.decoders import write_decoder


def test_force_replaces_an_earlier_out_and_nothing_else(case: Case, tmp_path: Path) -> None:
    ours, foreign = tmp_path / "ours", tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("the only copy")
    arguments = ["apply", case.model, case.out / "plan.json", "-o"]
    done(*arguments, ours)
    assert spq(*arguments, ours).code == 1
    (ours / "stale").write_text("x")
    done(*arguments, ours, "--force")
    assert not (ours / "stale").exists()
    refused = spq(*arguments, foreign, "--force")
    assert (refused.code, refused.out) == (1, "")
    assert "not an artifact of spq-graph" in refused.err
    assert (foreign / "thesis.txt").exists()


def test_ranges_and_plans_replace_only_their_own_kind(case: Case, tmp_path: Path) -> None:
    weights, notes = tmp_path / "model.safetensors", tmp_path / "notes.json"
    weights.write_text("the only copy")
    notes.write_text("{}")
    before = contents(tmp_path)
    measure = ["calibrate", case.model, "--calibration", case.calibration, "-o"]
    for out in (tmp_path / "model.json", tmp_path / "model", notes):
        assert "is not ours" in spq(*measure, out).err
    assert spq("plan", case.model, case.out / "ranges.json", "-o", notes).code == 1
    assert spq("plan", case.model, case.out / "ranges.json", "-o", case.model).code == 2
    assert contents(tmp_path) == before
    done(*measure, tmp_path / "ranges")
    done(*measure, tmp_path / "ranges.json")
    assert contents(tmp_path).keys() - before.keys() == {
        str(tmp_path / f"ranges.{kind}") for kind in ("json", "safetensors")
    }


@pytest.mark.parametrize("name", [".", "..", "decoder.onnx"])
def test_out_never_covers_an_input(case: Case, name: str) -> None:
    before = contents(case.model.parent)
    refused = spq("quantize", case.model, "-o", case.model.parent / name, "--force", "--no-eval")
    assert refused.code in (1, 2)
    assert contents(case.model.parent) == before


def test_what_did_not_run_in_integers_is_a_failed_check(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = replace(Precision.INT8.row, kernels=frozenset({"QGemm"}))
    monkeypatch.setattr("spq_graph.terms.precision.TABLE", {**TABLE, Precision.INT8: row})
    failed = spq("apply", case.model, case.out / "plan.json", "-o", tmp_path / "out")
    assert failed.code == 3
    assert "did not run as integer kernels" in failed.err
    assert "layers.0.mlp.gate_proj" in failed.err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("spq_graph.workbench.workbench.save_model", full)
    failed = spq("apply", case.model, case.out / "plan.json", "-o", tmp_path / "out")
    assert failed.code == 1
    assert "the disk is full" in failed.err
    assert not list(tmp_path.iterdir())


def test_a_plan_for_another_model(case: Case, tmp_path: Path) -> None:
    other = write_decoder(tmp_path / "other.onnx", seed=5)
    failed = spq("apply", other, case.out / "plan.json", "-o", tmp_path / "out")
    assert failed.code == 2
    assert "made for another model" in failed.err
    assert "another model" in spq("plan", other, case.out / "ranges.json", "-o", tmp_path / "plan.json").err


def usage(case: Case, *arguments: object) -> Result:
    return spq("quantize", case.model, "-o", case.out.parent / "unused", "--calibration", case.calibration, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", 3], "greater than or equal to 4"),
        (["--bits", 8, "--bits", 12], "less than or equal to 8"),
        (["--bits", "many"], "valid int"),
        (["--target", "tpu"], "'openvino' or 'portable'"),
        (["--high-precision", "fp12"], "high_precision"),
        (["--spike-ratio", 0.5], "spike_ratio"),
        (["--keep", "nowhere"], "'nowhere' fits no site"),
        (["--window", 1], "window"),
        (["--window", 2, "--bos"], "BOS"),
        (["--recipe", "absent.toml"], "recipe cannot be read"),
        (["--unknown"], "--unknown"),
    ],
)
def test_wrong_use(case: Case, arguments: list[Any], message: str) -> None:
    failed = usage(case, "--no-eval", *arguments)
    assert failed.code == 2, failed.err
    assert message in failed.err
    assert failed.out == ""
    assert [path.name for path in case.out.parent.iterdir()] == ["out"]


def test_other_wrong_uses(case: Case, tmp_path: Path) -> None:
    assert spq("inspect", case.out, "--site", "nowhere").code == 2
    assert spq("calibrate", case.model, "-o", tmp_path / "r.json", "--shard", "1").code == 2
    assert spq("calibrate", case.model, "-o", tmp_path / "r.json", "--shard", "3/3").code == 2
    assert spq("eval", case.model).code == 2
    assert spq("eval", case.model, "--against", case.model, "--tasks", "x.jsonl").code == 2
    assert spq("export", case.model, "-o", tmp_path / "out").code == 2
    assert spq("diff", tmp_path / "a.json", tmp_path / "b.json").code == 2
    same = usage(case, "--text", case.calibration)
    assert same.code == 2
    assert "the evaluation text is the calibration data" in same.err
    assert not list(tmp_path.iterdir())


def _spoilt(case: Case, folder: Path) -> dict[str, list[Any]]:
    """Requests with one thing wrong each, all of which show before calibration."""
    foreign, empty, few = folder / "foreign", folder / "empty.npz", folder / "few.npz"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("the only copy")
    np.savez(empty, input_ids=np.zeros((0, 8), np.int64))
    np.savez(few, input_ids=np.load(case.calibration)["input_ids"][:3])
    write_decoder(folder / "other.onnx", seed=5)
    write_decoder(folder / "plain.onnx", glu=False)
    (folder / "text.txt").write_text("words")
    (folder / "linking").mkdir()
    (folder / "linking" / "model.onnx").write_bytes((folder / "other.onnx").read_bytes())
    (folder / "linking" / "config.json").symlink_to(folder / "text.txt")
    return {
        "out exists": ["-o", case.out],
        "out is somebody else's": ["-o", foreign, "--force"],
        "out is an input": ["-o", case.model.parent, "--force"],
        "out holds the data": ["-o", folder, "--force", "--calibration", few],
        "out below a file": ["-o", folder / "text.txt" / "out"],
        "out far below a file": ["-o", folder / "text.txt" / "far" / "out"],
        "width": ["--bits", 8, "--bits", 12],
        "recipe": ["--recipe", "absent.toml"],
        "no calibration": ["--calibration", folder / "absent.npz"],
        "no text": ["--text", folder / "absent.npz"],
        "text without a tokenizer": ["--calibration", folder / "text.txt"],
        "one file for both": ["--text", case.calibration],
        "sequences of both": ["--text", few],
        "empty calibration": ["--calibration", empty],
        "empty text": ["--text", empty],
        "window and bos": ["--window", 2, "--bos"],
        "no ranges": ["--ranges", folder / "absent.json"],
        "ranges that are none": ["--ranges", folder / "text.txt"],
        "no tokenizer": ["--tokenizer", folder],
        "no model": [folder / "absent.onnx"],
        "no GLU": [folder / "plain.onnx"],
        "quantized already": [case.out / "model.onnx"],
        "a companion from elsewhere": [folder / "linking" / "model.onnx"],
        "ranges of another": [folder / "other.onnx", "--ranges", case.out / "ranges.json"],
    }


def test_a_dry_run_refuses_what_the_run_refuses(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same words, and before anything that takes long: both go through one order."""
    monkeypatch.setattr("spq_graph.workbench.workbench.collect_ranges", lambda *_: pytest.fail("it was calibrated"))
    for wrong, arguments in _spoilt(case, tmp_path).items():
        model = [] if isinstance(arguments[0], Path) else [case.model]
        out = [] if "-o" in arguments else ["-o", tmp_path / "out"]
        data = [] if "--calibration" in arguments else ["--calibration", case.calibration]
        run = ["quantize", *model, *out, *data, *arguments, "--quiet"]  # the time that a step took may differ
        before = contents(tmp_path, case.out)
        real, dry = spq(*run), spq(*run, "--dry-run")
        assert real.code != 0, wrong
        assert (dry.code, dry.out, dry.err) == (real.code, "", real.err), wrong
        assert contents(tmp_path, case.out) == before, wrong


def test_without_a_ladder_its_text_is_not_read_dry_or_not(case: Case, tmp_path: Path) -> None:
    empty = tmp_path / "empty.npz"
    np.savez(empty, input_ids=np.zeros((0, 8), np.int64))
    found = usage(case, "--text", empty, "--no-eval", "--dry-run", "--max-eval-tokens", 50, "--json").json
    assert found["of_which_ladder"] == 0.0
