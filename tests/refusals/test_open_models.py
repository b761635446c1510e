"""Refusals of data beside a model that is open, and of plans and drawings of it, each made and put right as it says."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.decisions.choices import apply_overrides, start
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.report import Report
from spq_graph.documents.token_profile import Peak
from spq_graph.documents.value_range import ValueRange
from spq_graph.jobs.apply import apply
from spq_graph.jobs.calibrate import calibrate
from spq_graph.models.source import resolve
from spq_graph.terms.precision import Precision
from spq_graph.workbench.data import Data
from spq_graph.workbench.opening import Opening
from tests.conftest import write_tokenizer
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.deciding import seen as range_of
from tests.support.deciding import site
from tests.support.decoders import LONGEST
from tests.support.following import Told
from tests.support.samples import sample_report

follows = pytest.mark.follows


# ------------------------------------------------------------------------------------------------- data


@follows("spq_graph/workbench/data.py:check_measured", "no such file")
def test_no_data(refusal: Told, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    source = resolve(str(made.model))
    with refusal:
        Data(calibration="dta.npz").check(source)
    monkeypatch.chdir(made.data.parent)
    Data(calibration="data.npz").check(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
@follows("spq_graph/documents/content.py:refuse_special")
def test_data_in_a_pipe(refusal: Told, made: Made, tmp_path: Path) -> None:
    source, pipe, file = resolve(str(made.model)), tmp_path / "pipe.npz", tmp_path / "data.npz"
    os.mkfifo(pipe)
    with refusal:
        Data(calibration=pipe).check(source)
    writer = threading.Thread(target=pipe.write_bytes, args=(made.data.read_bytes(),))
    writer.start()
    file.write_bytes(pipe.read_bytes())
    writer.join()
    Data(calibration=file).check(source)


@follows("spq_graph/workbench/data.py:check_measured", "text needs a tokenizer")
def test_text_without_a_tokenizer(refusal: Told, made: Made) -> None:
    with refusal:
        Data(calibration=made.prose).check(resolve(str(made.model)))
    Data(calibration=made.prose).check(resolve(str(made.model), made.words))
    Data(calibration=made.data).check(resolve(str(made.model)))


@follows("spq_graph/workbench/data.py:Data.check", "the evaluation text is the calibration data")
def test_one_file_for_both(refusal: Told, made: Made) -> None:
    source = resolve(str(made.model))
    with refusal:
        Data(calibration=made.data, text=made.data).check(source)
    Data(calibration=made.data, text=made.text).check(source)


@follows("spq_graph/workbench/data.py:_refuse_overlap")
def test_sequences_in_both(refusal: Told, made: Made, tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", input_ids=np.load(made.data)["input_ids"][:2])
    arguments = ["quantize", made.model, "-o", tmp_path / "out", "--calibration", made.data, "--dry-run", "--text"]
    refusal.command(*arguments, tmp_path / "some.npz")
    done(*arguments, made.text)


@follows("spq_graph/workbench/opening.py:Opening.resolve")
def test_a_window_beyond_the_model(refusal: Told, made: Made, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": LONGEST}), encoding="utf-8")
    arguments = ["eval", made.model, "--tokenizer", tmp_path, "--text", made.prose]
    refusal.command(*arguments, "--window", LONGEST + 1)
    longest = int(refusal.error.remedy.split()[1])
    for window in (longest, longest - 1):
        done(*arguments, "--window", window)


# ------------------------------------------------------------------------------------------------- one session


@follows("spq_graph/workbench/streams.py:open_whole", "in one session this model takes")
def test_a_model_beyond_memory(refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 1)
    opening = Opening(made.model, memory=10_000)
    with refusal:
        calibrate(opening, tmp_path / "ranges")
    assert calibrate(opening, tmp_path / "ranges", calibration=made.data).tokens == 64


# ------------------------------------------------------------------------------------------------- decisions


@follows("spq_graph/decisions/choices.py:refuse_unfit_patterns", "did you mean")
def test_keep_misspelled(refusal: Told, made: Made, tmp_path: Path) -> None:
    """What is meant is the end of several keys."""
    arguments = ["plan", made.model, made.ranges, "-o", tmp_path / "plan.json", "--spike-ratio", 50, "--keep"]
    refusal.command(*arguments, "down_prj")
    near = refusal.error.remedy.split("'")[1]
    assert near == "down_proj"
    kept = [site["key"] for site in done(*arguments, near, "--json").json["sites"] if site["reason"] == "override"]
    assert kept == ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]
    assert f".{near}" in done("inspect", made.model).out


@follows("spq_graph/decisions/choices.py:refuse_unfit_patterns", "-> `spq-graph inspect")
def test_keep_nothing(refusal: Told, made: Made, tmp_path: Path) -> None:
    arguments = ["plan", made.model, made.ranges, "-o", tmp_path / "plan.json", "--spike-ratio", 50, "--keep"]
    refusal.command(*arguments, "nowhere")
    key = done("inspect", made.model, "--json").json["sites"][0]["key"]
    done(*arguments, key)


@follows("spq_graph/decisions/choices.py:apply_overrides", "without a range")
def test_activations_without_a_range(refusal: Told) -> None:
    def planned(precision: str, measured: ValueRange | None) -> Precision:
        recipe = Recipe.model_validate({"overrides": [{"pattern": "s0", "precision": precision}]})
        choices = {"s0": start(site("s0"), Precision.FP32, measured, recipe)}
        apply_overrides(choices, recipe)
        return choices["s0"].precision

    with refusal:
        planned("fp8_e4m3", None)
    assert planned("fp8_e4m3", range_of(5.0)) is Precision.FP8_E4M3
    assert planned("fp32", None) is Precision.FP32


@follows("spq_graph/decisions/choices.py:_table_by_hand")
def test_what_an_embedding_cannot_be(refusal: Told, made: Made, tmp_path: Path) -> None:
    key = next(s["key"] for s in done("inspect", made.model, "--json").json["sites"] if s["role"] == "embedding")
    recipe = tmp_path / "recipe.toml"
    arguments = ["plan", made.model, made.ranges, "-o", tmp_path / "plan.json", "--recipe", recipe]
    recipe.write_text(f'overrides = [{{pattern = "{key}", precision = "int8"}}]')
    refusal.command(*arguments)
    asked = refusal.error.remedy.split()[2].rstrip(",")
    recipe.write_text(f'overrides = [{{pattern = "{key}", precision = "{asked}"}}]')
    done(*arguments)


@pytest.mark.parametrize(
    "target", [pytest.param("openvino", marks=follows("spq_graph/decisions/retarget.py:refuse_unsupported"))]
)
def test_a_plan_that_its_target_cannot_run(refusal: Told, made: Made, tmp_path: Path, target: str) -> None:
    """A plan that was written by hand, for the target itself."""
    pytest.importorskip("openvino")
    plan = Plan.load(made.plan)
    plan = plan.model_copy(update={"recipe": plan.recipe.model_copy(update={"target": target})})
    plan.sites[0].precision = Precision.FP8_E4M3
    plan.save(tmp_path / "plan.json")
    arguments = ["apply", made.model, tmp_path / "plan.json", "-o"]
    refusal.command(*arguments, tmp_path / "out")
    command = refusal.error.remedy.partition("`spq-graph apply ")[2].partition("`")[0].split()
    done(*arguments, tmp_path / "out", *command)
    assert "fp8_e4m3" in str(Plan.load(tmp_path / "out" / "plan.json").sites[0].evidence.note)
    done(*arguments, tmp_path / "other", "--target", "cpu")
    assert apply(made.model, tmp_path / "whole", plan=made.plan).out.is_dir()


# ------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize(
    "bits",
    [
        pytest.param(None, marks=follows("spq_graph/views/plots.py:plot_ladder", "with --text FILE", nth=1)),
        pytest.param(8, marks=follows("spq_graph/views/plots.py:plot_ladder", "--bits BITS")),
    ],
)
def test_no_ladder(refusal: Told, made: Made, tmp_path: Path, bits: int | None) -> None:
    pytest.importorskip("matplotlib")
    from spq_graph.views.plots import plot_ladder

    with refusal:
        plot_ladder(Report.load(made.out / "report.json"), bits)
    options = refusal.error.remedy.removeprefix("run `quantize` with ").replace("FILE", str(made.text)).split()
    data = ["--calibration", made.data, "--spike-ratio", 50]
    done("quantize", made.model, "-o", tmp_path / "out", *data, *options)
    assert plot_ladder(Report.load(tmp_path / "out" / "report.json"), bits).axes


@follows("spq_graph/views/plots.py:plot_spikes")
def test_no_layers(refusal: Told, made: Made) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    from spq_graph.views.plots import plot_spikes

    plan = Plan.load(made.plan)
    for entry in plan.sites:
        entry.site = replace(entry.site, layer=None)
    with refusal:
        plot_spikes(plan)
    assert len(plan.to_pandas()) == len(plan.sites)


@follows("spq_graph/views/plots.py:plot_profile", "the plan has no such site")
def test_profile_of_no_site(refusal: Told, made: Made) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    from spq_graph.views.plots import plot_profile

    plan, ranges = Plan.load(made.plan), Ranges.load(made.ranges)
    with refusal:
        plot_profile(ranges, plan, "nowhere")
    assert plot_profile(ranges, plan, plan.to_pandas().index[0]).axes


@follows("spq_graph/views/plots.py:plot_profile", "hold no profile")
def test_no_profile(refusal: Told, made: Made) -> None:
    pytest.importorskip("matplotlib")
    from spq_graph.views.plots import plot_profile

    plan, ranges = Plan.load(made.plan), Ranges.load(made.ranges)
    key = plan.sites[0].key
    with refusal:
        plot_profile(Ranges("sha256:0"), plan, key)
    assert plot_profile(ranges, plan, key).axes
    for seen in ranges.values.values():
        seen.peak, seen.profile = Peak(1.0), None if seen is ranges.values[plan.sites[0].input] else seen.profile
    other = next(site.key for site in plan.sites if site.input != plan.sites[0].input)
    assert plot_profile(ranges, plan, other).axes


@follows("spq_graph/views/plots.py:plot_layer")
def test_no_drawing(refusal: Told, made: Made) -> None:
    pytest.importorskip("matplotlib")
    from spq_graph.views.plots import plot_layer

    with refusal:
        plot_layer(sample_report().model_copy(update={"layer": None}))
    assert plot_layer(Report.load(made.out / "report.json")).axes
