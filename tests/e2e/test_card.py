"""What lies in OUT for others: a card and the recipe, whose model it is, and no place on this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tests.support.command import Case, contents, done, spq
from tests.support.decoders import write_decoder, write_ids
from tests.support.hub import cached, of_folder

CARD = "---\nlicense: mit\n---\n# Theirs\n"


def test_nothing_in_out_says_where_files_lay(case: Case) -> None:
    """The whole run had absolute paths alone."""
    place = str(case.model.parent).encode()
    assert len(place) > 10
    assert [path.name for path in case.out.iterdir() if place in path.read_bytes()] == []
    command = json.loads((case.out / "report.json").read_text())["command"]
    assert f"spq-graph quantize {case.model.name} -o {case.out.name}" in command


def test_whose_model_it_is_stands_in_plan_and_card(tmp_path: Path) -> None:
    write_decoder(tmp_path / "model.onnx", layers=1)
    snapshot = cached(tmp_path / "hub", "org/name", {"model.onnx": tmp_path / "model.onnx", "README.md": CARD})
    out, ids = tmp_path / "out", write_ids(tmp_path / "ids.npz")
    done("quantize", snapshot, "-o", out, "--calibration", ids, "--window", 32, "--spike-ratio", 5, "--no-eval")
    model = json.loads((out / "plan.json").read_text())["model"]
    assert (model["hub"], model["revision"], model["license"]) == ("org/name", snapshot.name, "mit")
    card = (out / "README.md").read_text()
    assert 'base_model:\n  - "org/name"' in card
    assert 'license: "mit"' in card
    assert "Theirs" not in card
    assert f"[`org/name`](https://huggingface.co/org/name) at `{snapshot.name}`" in card


@pytest.mark.slow
def test_a_folder_from_the_hubs_cache(tiny_llama: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    snapshot = cached(tmp_path / "hub", "org/tiny", {**of_folder(tiny_llama), "README.md": CARD})
    out, ids = tmp_path / "out", write_ids(tmp_path / "ids.npz")
    done("quantize", snapshot, "-o", out, "--calibration", ids, "--spike-ratio", 5, "--no-eval")
    assert json.loads((out / "plan.json").read_text())["model"]["hub"] == "org/tiny"
    assert [path.name for path in out.iterdir() if str(tmp_path).encode() in path.read_bytes()] == []


def test_apply_writes_both_and_the_recipe_makes_the_same_again(case: Case, tmp_path: Path) -> None:
    done("apply", case.model, case.out / "plan.json", "-o", tmp_path / "out")
    assert "Accuracy was not measured" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "recipe.toml").read_bytes() == (case.out / "recipe.toml").read_bytes()
    done(
        "plan", case.model, case.out / "ranges.json", "-o", tmp_path / "plan.json", "--recipe", case.out / "recipe.toml"
    )
    again = json.loads((tmp_path / "plan.json").read_text())["recipe"]
    assert again == json.loads((case.out / "plan.json").read_text())["recipe"]


def test_verify_holds_the_recipe_against_the_plan(case: Case, tmp_path: Path) -> None:
    shutil.copytree(case.out, tmp_path / "out")
    done("verify", tmp_path / "out", case.model)
    (tmp_path / "out" / "recipe.toml").write_text("bits = 5\n")
    failed = spq("verify", tmp_path / "out", case.model)
    assert failed.code == 3
    assert "recipe.toml is not the recipe of the plan beside it" in failed.err


def test_force_replaces_our_card_and_no_one_elses(case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("the only copy")
    before = contents(tmp_path)
    run = ["quantize", case.model, "-o", out, "--calibration", case.calibration, "--spike-ratio", 5, "--no-eval"]
    refused = spq(*run, "--force")
    assert refused.code == 1
    assert "not an artifact of spq-graph" in refused.err
    assert contents(tmp_path) == before
    shutil.rmtree(out)
    done(*run)
    (out / "README.md").write_text("a card that was edited")
    done(*run, "--force")
    assert "edited" not in (out / "README.md").read_text()
