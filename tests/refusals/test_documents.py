"""Refusals of plans, ranges, recipes and reports, each made and put right as it says."""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from spq_graph.documents import artifact
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges, merge_all
from spq_graph.documents.recipe import Recipe, load_recipe
from spq_graph.documents.report import Report
from tests.conftest import ROOT
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.decoders import write_decoder
from tests.support.following import Told

follows = pytest.mark.follows


# ------------------------------------------------------------------------------------------------- plans and ranges


@follows("spq_graph/documents/plan_file.py:refuse_other")
def test_plan_of_another_model(refusal: Told, made: Made, tmp_path: Path) -> None:
    other = write_decoder(tmp_path / "other.onnx", layers=2, seed=5)
    refusal.command("apply", other, made.plan, "-o", tmp_path / "out")
    done("calibrate", other, "-o", tmp_path / "ranges", "--calibration", made.data)
    done("plan", other, tmp_path / "ranges", "-o", tmp_path / "plan.json", "--spike-ratio", 50)
    done("apply", other, tmp_path / "plan.json", "-o", tmp_path / "out")


@follows("spq_graph/documents/plan.py:Plan.load", "the plan cannot be read")
def test_no_plan(refusal: Told, made: Made, tmp_path: Path) -> None:
    refusal.command("diff", tmp_path / "plan.json", made.plan)
    done("plan", made.model, made.ranges, "-o", tmp_path / "plan.json", "--spike-ratio", 50)
    done("diff", tmp_path / "plan.json", made.plan)


@follows("spq_graph/documents/plan.py:Plan.load", "this is not a valid plan")
def test_invalid_plan(refusal: Told, made: Made, tmp_path: Path) -> None:
    (tmp_path / "invalid.json").write_text("{}", encoding="utf-8")
    refusal.command("apply", made.model, tmp_path / "invalid.json", "-o", tmp_path / "out")
    done("plan", made.model, made.ranges, "-o", tmp_path / "plan.json", "--spike-ratio", 50)
    assert Plan.load(tmp_path / "plan.json").sites


@follows("spq_graph/documents/ranges.py:Ranges.merge")
def test_ranges_of_two_models(refusal: Told, made: Made, tmp_path: Path) -> None:
    foreign = Ranges("sha256:0")
    foreign.save(tmp_path / "foreign.json")
    merge = ["calibrate", made.model, "-o", tmp_path / "merged.json", "--merge"]
    refusal.command(*merge, made.ranges, "--merge", tmp_path / "foreign.json")
    for index in range(2):
        shard = ["--calibration", made.data, "--shard", f"{index}/2"]
        done("calibrate", made.model, "-o", tmp_path / f"{index}.json", *shard)
    done(*merge, tmp_path / "0.json", "--merge", tmp_path / "1.json")


def calibrated(made: Made, path: Path) -> None:
    done("calibrate", made.model, "-o", path, "--calibration", made.data)
    assert Ranges.load(path).values


@follows("spq_graph/documents/ranges.py:Ranges.load", "the ranges cannot be read")
def test_ranges_without_arrays(refusal: Told, made: Made, tmp_path: Path) -> None:
    shutil.copy(made.ranges, tmp_path / "ranges.json")
    with refusal:
        Ranges.load(tmp_path / "ranges.json")
    calibrated(made, tmp_path / "ranges.json")


@follows("spq_graph/documents/ranges.py:Ranges.refuse_lacking")
def test_ranges_of_fewer_sites(refusal: Told, made: Made, tmp_path: Path) -> None:
    ranges = Ranges.load(made.ranges)
    del ranges.values[Plan.load(made.plan).sites[0].input]
    ranges.save(tmp_path / "ranges.json")
    arguments = ["plan", made.model, tmp_path / "ranges.json", "-o", tmp_path / "plan.json", "--spike-ratio", 50]
    refusal.command(*arguments)
    calibrated(made, tmp_path / "ranges.json")
    done(*arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param("less", marks=follows("spq_graph/documents/plan_file.py:refuse_misfit", "has no entry")),
        pytest.param("more", marks=follows("spq_graph/documents/plan_file.py:refuse_misfit", "has an entry")),
        pytest.param("other", marks=follows("spq_graph/documents/plan_file.py:refuse_misfit", "the plan says")),
    ],
)
def test_a_plan_that_does_not_fit(refusal: Told, made: Made, tmp_path: Path, wrong: str) -> None:
    plan = json.loads(made.plan.read_text(encoding="utf-8"))
    first = plan["sites"][0]
    if wrong == "less":
        plan["sites"].remove(first)
    elif wrong == "more":
        plan["sites"].append(first | {"key": "nowhere"})
    else:
        first["node"] = "another"
    (tmp_path / "wrong.json").write_text(json.dumps(plan), encoding="utf-8")
    refusal.command("apply", made.model, tmp_path / "wrong.json", "-o", tmp_path / "out")
    done("plan", made.model, made.ranges, "-o", tmp_path / "plan.json", "--spike-ratio", 50)
    done("apply", made.model, tmp_path / "plan.json", "-o", tmp_path / "out")


@follows("spq_graph/documents/leftovers.py:temporary_folder")
def test_no_temporary_folder(refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full, and then with room; and another one."""
    place, mkdir = tmp_path / "temporary", Path.mkdir
    place.mkdir()
    arguments = ["eval", made.model, "--text", made.text]
    monkeypatch.setattr(tempfile, "tempdir", str(place))

    def full(path: Path, *arguments: Any, **named: Any) -> None:
        if path.parent == place:
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(path, *arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", full)
        refusal.command(*arguments)
        patched.setattr(tempfile, "tempdir", None)
        patched.setenv(refusal.error.remedy.split()[-1], str(tmp_path))
        done(*arguments)
    done(*arguments)


@follows("spq_graph/documents/ranges.py:merge_all")
def test_nothing_to_merge(refusal: Told, made: Made) -> None:
    with refusal:
        merge_all([])
    assert merge_all([Ranges.load(made.ranges)]).tokens


# ------------------------------------------------------------------------------------------------- recipes and reports


@follows("spq_graph/documents/recipe.py:_fields_in", "the recipe cannot be read")
def test_recipe_that_is_none(refusal: Told, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("bits 6", encoding="utf-8")
    with refusal:
        load_recipe(recipe)
    recipe.write_text(refusal.error.remedy.rpartition("line: ")[2], encoding="utf-8")
    assert load_recipe(recipe).bits == 6


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        pytest.param(wrong, key, marks=follows("spq_graph/documents/recipe.py:load_recipe", "docs/recipe.md"))
        for wrong, key in (("bits = 12", "bits"), ("bitz = 6", "bits"), ('target = "tpu"', "target"))
    ],
)
def test_recipe_of_wrong_values(refusal: Told, tmp_path: Path, wrong: str, key: str) -> None:
    """What the page has of the key is taken: the ends of its range, or each of its words."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(wrong, encoding="utf-8")
    with refusal:
        load_recipe(recipe)
    page = (ROOT / refusal.error.remedy.split()[0]).read_text(encoding="utf-8")
    assert {name for name in Recipe.model_fields if f"| `{name}` |" not in page} == set()
    cell = next(line for line in page.splitlines() if line.startswith(f"| `{key}` |")).split(" | ")[1]
    values = re.findall(r"at (?:least|most) (\d+)", cell) or [f'"{word}"' for word in re.findall(r"`(\w+)`", cell)]
    assert len(values) > 1
    for value in values:
        recipe.write_text(f"{key} = {value}", encoding="utf-8")
        assert str(getattr(load_recipe(recipe), key)) == value.strip('"')


@follows("spq_graph/documents/report.py:Report.load")
def test_no_report(refusal: Told, made: Made, tmp_path: Path) -> None:
    with refusal:
        Report.load(made.plan)
    assert Report.load(made.out / artifact.REPORT).verdict
    again = ["--calibration", made.data, "--spike-ratio", 50, "--no-eval"]
    done("quantize", made.model, "-o", tmp_path / "out", *again)
    assert json.loads((tmp_path / "out" / artifact.REPORT).read_text(encoding="utf-8"))["verdict"]


@follows("spq_graph/documents/tables.py:to_frame")
def test_no_pandas(refusal: Told, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan.load(made.plan)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pandas", None)
        with refusal:
            plan.to_pandas()
    assert refusal.error.remedy == "pip install pandas"
    pytest.importorskip("pandas", reason="to_pandas() wants pandas")
    assert len(plan.to_pandas()) == len(plan.sites)
