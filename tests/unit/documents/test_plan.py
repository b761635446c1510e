"""Deterministic JSON that says what the contract promises, and a loader that refuses anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.plan_file import refuse_misfit
from spq_graph.terms.errors import UsageError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from tests.support.samples import sample_plan


@pytest.mark.parametrize("hostile", [False, True])
def test_round_trip(tmp_path: Path, hostile: bool) -> None:
    plan = sample_plan(hostile=hostile)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.to_json() == plan.to_json() == (tmp_path / "plan.json").read_text(encoding="utf-8")
    assert loaded.digest == plan.digest


def test_same_decisions_same_bytes() -> None:
    assert sample_plan().to_json() == sample_plan().to_json()
    assert sample_plan(7).digest != sample_plan(8).digest


def test_keys_of_the_contract() -> None:
    data = json.loads(sample_plan().to_json())
    assert data["schema"] == "spq-graph/plan/1"
    assert set(data) >= {"model", "recipe", "calibration", "sites", "budget_met", "unmatched"}
    assert set(data["model"]) == {"digest", "origin"}
    assert set(data["calibration"]) >= {"digest", "tokens", "sequences"}
    assert set(data["unmatched"][0]) == {"node", "reason"}
    for site in data["sites"]:
        assert set(site) >= {"key", "node", "role", "layer", "shape", "precision", "reason", "evidence"}
        assert None not in site["evidence"].values()


def test_who_counts() -> None:
    plan = sample_plan()
    assert {s.key for s in plan.kept} == {f"model.layers.{n}.mlp.down_proj" for n in (1, 3)}
    assert len(plan.counted) == len(plan.sites) - 1
    assert all(s.role is not Role.LM_HEAD for s in plan.counted)
    assert len(plan.integer_sites) == len(plan.sites) - 3
    head = plan.sites[-1].model_copy(update={"reason": Reason.OVERRIDE, "precision": Precision.W8A8_BLOCK})
    asked = plan.model_copy(update={"sites": [*plan.sites[:-1], head]})
    assert head in asked.counted
    assert head in asked.kept


def test_an_entry_is_about_a_site_and_lies_flat_in_json() -> None:
    """In JSON a site's fields stand first, beside the decision, and the schema says so."""
    plan = sample_plan()
    entry = plan.sites[0]
    told = asdict(entry.site)
    assert {name: getattr(entry, name) for name in told} == told
    keys = [*told, "precision", "reason", "range", "evidence"]
    assert list(plan.to_dict()["sites"][0]) == keys
    for mode in ("validation", "serialization"):
        described = Plan.model_json_schema(mode=mode)["$defs"]["SitePlan"]["properties"]
        assert list(described) == keys
        assert all("description" in field for field in described.values())
    assert Plan.model_validate(plan.to_dict()).sites[0].site == entry.site


def test_grids_are_read_by_their_names_of_the_first_edition() -> None:
    data = sample_plan().to_dict()
    data["sites"][0]["precision"], data["sites"][1]["precision"] = "int6", "w8a16"
    data["recipe"]["overrides"] = [{"pattern": "*", "precision": "int4"}]
    plan = Plan.model_validate_json(json.dumps(data))
    assert [site.precision for site in plan.sites[:2]] == [Precision.INT6_IN_8, Precision.W8A16]
    assert plan.recipe.overrides[0].precision == "int4_in_8"
    assert '"int6_in_8"' in plan.to_json()


def entry(**edit: Any) -> dict[str, Any]:
    return {**sample_plan().to_dict()["sites"][0], **edit}


def edited(edit: dict[str, Any]) -> str:
    return json.dumps(sample_plan().to_dict() | edit)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("{", "JSON"),
        ("[]", ""),
        (edited({"schema": "spq-graph/plan/2"}), "schema"),
        (edited({"extra": 1}), "extra"),
        (edited({"sites": [{"key": "a"}]}), r"sites\.0\.node"),
        (edited({"sites": [entry(role="cook")]}), r"sites\.0\.role: .*'glu_down'"),
        (edited({"sites": [entry(range=[1])]}), r"sites\.0\.range\.1"),
        (edited({"sites": [entry(size=1)]}), r"sites\.0\.size: Extra"),
        (edited({"sites": [entry(site={"key": "a"})]}), r"sites\.0\.site: Unexpected"),
        (edited({"unmatched": [{"node": "n"}]}), r"unmatched\.0\.reason"),
        (edited({"unmatched": [{"node": "n", "reason": "why", "size": 1}]}), r"unmatched\.0\.size: Unexpected"),
        (edited({"budget_met": "perhaps"}), "budget_met"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, content: str, place: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=rf"(?s)not a valid plan.*{place}") as caught:
        Plan.load(path)
    assert caught.value.where == str(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Plan.load(tmp_path / "plan.json")


def twice(text: str) -> str:
    """One key of the plan's first object a second time, as an editor leaves it; a JSON reader takes the last."""
    return text.replace('"budget_met": true', '"budget_met": false, "budget_met": true')


def with_evidence(**edit: Any) -> str:
    return edited({"sites": [entry(evidence=edit)]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (twice(edited({"budget_met": True})), "'budget_met' stands twice"),
        (edited({"sites": [entry(), entry()]}), r"sites\.1\.key: .* has an entry already, sites\.0"),
        (edited({"sites": [entry(range=[2.0, -1.0])]}), r"sites\.0\.range: the minimum 2 is above the maximum -1"),
        (edited({"sites": [entry(range=[float("nan"), 1.0])]}), "nan is no number"),
        (edited({"sites": [entry(range=[-float("inf"), 1.0])]}), r"sites\.0\.range\.0: -inf is no number"),
        (edited({"sites": [entry(range=[-1.0, 77.0])]}).replace("77.0", "1e999"), r"range\.1: inf is no number"),
        (edited({"sites": [entry(shape=[0, 8])]}), r"sites\.0\.shape\.0: 0 is not from 1"),
        (edited({"sites": [entry(layer=-1)]}), r"sites\.0\.layer: -1 is not from 0"),
        (with_evidence(ratio=-3.0), r"sites\.0\.evidence\.ratio: -3.0 is not at least 0"),
        (with_evidence(position=-2), r"position: -2 is not from -1"),
        (edited({"calibration": {"digest": "d", "tokens": -5, "sequences": 1}}), r"calibration\.tokens: -5"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=rf"(?s)not a valid plan.*{says}") as caught:
        Plan.load(path)
    assert caught.value.where == str(path)
    assert "spq-graph plan" in caught.value.remedy


class TestBesideItsModel:
    def test_every_site_once(self) -> None:
        sites = [site.site for site in sample_plan().sites]
        refuse_misfit(sites, sites, "model.onnx")

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            (lambda sites: sites[:-2], "no entry for .*, nor for 1 more, of model.onnx"),
            (lambda sites: [*sites, replace(sites[0], key="other")], "an entry for other, which is no site"),
            (lambda sites: [*sites, sites[0]], "or has one already"),
            (lambda sites: [replace(sites[0], node="elsewhere"), *sites[1:]], "'elsewhere' as node"),
            (lambda sites: [replace(sites[0], shape=(1, 1)), *sites[1:]], r"\(1, 1\) as shape"),
            (lambda sites: [replace(sites[0], input=""), *sites[1:]], "'' as input"),
            (lambda sites: [replace(sites[0], role=Role.EMBEDDING), *sites[1:]], "'embedding' as role"),
        ],
    )
    def test_otherwise_the_site_is_named(self, change: Callable[[list[Site]], list[Site]], says: str) -> None:
        sites = [site.site for site in sample_plan().sites]
        with pytest.raises(UsageError, match=says):
            refuse_misfit(change(sites), sites, "model.onnx")
