"""The model card: metadata that the Hub takes, figures as they were measured, and names that cannot act."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from spq_graph.documents.changes import Peel
from spq_graph.documents.plan import Plan
from spq_graph.documents.recipe import Recipe, load_recipe
from spq_graph.documents.treatment import Cause, Treatment
from spq_graph.terms.rows import FP32, SPIKE_AWARE
from spq_graph.views.card import recipe_file, render_card, scheme
from tests.support.samples import HOSTILE, sample_plan, sample_report

PLAN, REPORT = sample_plan(), sample_report()


def of_hub(plan: Plan, **more: str) -> Plan:
    known = {"hub": "org/name", "revision": "0" * 40, "license": "apache-2.0"} | more
    return plan.model_copy(update={"model": plan.model.model_copy(update=known)})


def metadata(card: str, folder: Path) -> dict[str, Any]:
    """As the Hub's own library reads it."""
    hub = pytest.importorskip("huggingface_hub")
    (folder / "README.md").write_text(card, encoding="utf-8")
    data = hub.ModelCard.load(folder / "README.md", ignore_metadata_errors=False).data
    return dict(data.to_dict()) | {"eval_results": data.eval_results}


def test_the_hub_reads_what_it_was_made_of_and_at_what_loss(tmp_path: Path) -> None:
    found = metadata(render_card(of_hub(PLAN), REPORT), tmp_path)
    assert found["base_model"] == ["org/name"]
    assert found["base_model_relation"] == "quantized"
    assert (found["license"], found["library_name"], found["pipeline_tag"]) == ("apache-2.0", "onnx", "text-generation")
    assert {"onnx", "onnxruntime", "w8a8", "spq-graph"} <= set(found["tags"])
    perplexity, kl = found["eval_results"]
    ours = REPORT.rung(SPIKE_AWARE, 8)
    assert ours is not None
    assert (perplexity.metric_type, perplexity.metric_value) == ("perplexity", round(ours.perplexity, 4))
    assert (kl.metric_type, kl.metric_value) == ("kl", round(ours.kl or 0.0, 6))


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    found = metadata(render_card(PLAN), tmp_path)
    assert not {"base_model", "license", "metrics", "model-index"} & found.keys()
    text = (tmp_path / "README.md").read_text()
    assert "Accuracy was not measured." in text
    assert "name it in the metadata above" in text
    assert "report.html" not in text  # nor named, where there is none
    assert "`report.html` shows" in render_card(PLAN, REPORT)


def test_a_licence_of_ones_own(tmp_path: Path) -> None:
    found = metadata(render_card(of_hub(PLAN, license="other", license_name="llama3.1: 'x'")), tmp_path)
    assert (found["license"], found["license_name"]) == ("other", "llama3.1: 'x'")


def test_the_figures_are_those_of_the_report() -> None:
    card = render_card(PLAN, REPORT)
    assert REPORT.verdict.summary in card
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith(("| FP32", "| spike-aware (this"))]
    for row, name in zip(rows, (FP32, SPIKE_AWARE), strict=True):
        rung = REPORT.rung(name, None if name == FP32 else 8)
        assert rung is not None
        assert float(row[2].replace(",", "")) == pytest.approx(rung.perplexity, rel=1e-4)
    kept = re.findall(r"^\| `(.*?)` \|", card, re.MULTILINE)
    assert set(kept) == {site.key for site in PLAN.kept}


def test_the_recipe_is_that_of_the_plan(tmp_path: Path) -> None:
    recipe = Recipe(target="cuda", bits=6, keep=("a.*",), overrides=({"pattern": "x", "precision": "fp16"},))  # type: ignore[arg-type]
    (tmp_path / "recipe.toml").write_text(recipe_file(recipe))
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_names_cannot_act(tmp_path: Path) -> None:
    card = render_card(sample_plan(hostile=True), REPORT)
    body = card.split("---", 2)[2]
    assert HOSTILE not in card
    assert "<script" not in re.sub(r"`[^`\n]*`", "", body)
    metadata(card, tmp_path)
    assert all(line.count("|") == 5 for line in body.splitlines() if line.startswith("| `"))


@pytest.mark.parametrize(("precision", "name"), [("fp8_e4m3", "FP8"), ("w8a8_block", "8-bit weights")])
def test_what_most_people_call_it(precision: str, name: str) -> None:
    plan = sample_plan()
    assert scheme(plan) == "W8A8"
    from spq_graph.terms.precision import Precision

    assert scheme(plan.with_precisions(lambda s: Precision(precision))) == name


def test_remedies_are_told_by_how_many_sites_have_them() -> None:
    plan = sample_plan()
    keys = [site.key for site in plan.sites]
    peel = Peel(kind="peel", value="hidden", channels=(1, 2), low=-1.0, high=1.0)
    made = [
        Treatment(remedy="peel", sites=tuple(keys[:3]), applied=True, reason=Cause.BUDGET, changes=(peel,)),
        Treatment(remedy="peel", sites=tuple(keys[3:4]), applied=False, reason=Cause.NOT_NEEDED, changes=(peel,)),
    ]
    assert f"Remedy `peel` at 3 of the {len(keys)} sites" in render_card(plan.with_treatments(made))
    assert "Remedy" not in render_card(plan)
