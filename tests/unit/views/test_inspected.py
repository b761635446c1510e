"""Inspections and differences in the terminal: names are text, and colour is for terminals."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from rich.console import Console

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.findings import (
    ComparedRung,
    Decision,
    Difference,
    GraphFacts,
    InspectedSite,
    Inspection,
    Pair,
    SeenProfile,
    SeenStretch,
    SeenToken,
)
from spq_graph.documents.plan import Evidence, SitePlan
from spq_graph.terms.rows import RowId
from spq_graph.terms.site import Role, Site, Unmatched
from spq_graph.views.inspected import show_difference, show_inspection
from tests.support.samples import HOSTILE, sample_plan

LONG = "model." + "very_long_" * 30 + "name"
ROWS = [("spike_aware", None), ("spike_aware_fp8_e4m3", None), ("control_random", 1), ("weight_only", None)]
RTL = "\u05d0\u05d1\u05d2\u202e"


def inspected(entry: SitePlan, name: str) -> InspectedSite:
    data = entry.model_dump(mode="json")
    data |= {"key": data["key"] + name, "node": data["node"] + name}
    data["evidence"]["token_text"] = name
    return InspectedSite.planned(SitePlan.model_validate(data))


def inspection(name: str) -> Inspection:
    plan = sample_plan(2)
    sites = [inspected(entry, name) for entry in plan.sites]
    profile = SeenProfile([SeenStretch(0, 0, 9.0, 1.0), SeenStretch(1, 1, 0.0, 0.0)], [SeenToken(1, name, 9.0, 0)])
    return Inspection(
        path=name,
        glu_blocks=2,
        sites=sites,
        unmatched=[Unmatched(one.node + name, one.reason) for one in plan.unmatched],
        graph=GraphFacts(opset=21, producer=name, plan=None, version=None, operators={}),
        measured=CalibrationRef(digest="", tokens=9, sequences=1, origin=name),
        profiles={site.key: profile for site in sites},
    )


def difference(name: str) -> Difference:
    return Difference(
        same_model=False,
        changed={name: Pair(Decision("int8", "budget", 3.0), Decision("fp32", None, None))},
        only_a=[name],
        only_b=[],
        factors={},
        branches={name: Pair((), (1, 5))},
        prefix=Pair((), (7, 1)),
        recipe={"keep": Pair([name], [])},
        operators={name: Pair(1, 0)},
        bytes=Pair(1_000_000, 2_000_000),
        ladder=[ComparedRung(RowId.read(name), 8, Pair(2.0, 3.0))],
    )


def printed(show: Callable[[Console], None], *, terminal: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=80, force_terminal=terminal, color_system="truecolor" if terminal else "auto"
    )
    show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def everything(name: str, *, terminal: bool = False) -> list[str]:
    found = inspection(name)
    return [
        printed(lambda console: show_inspection(found, console), terminal=terminal),
        printed(lambda console: show_inspection(found, console, why=True), terminal=terminal),
        printed(lambda console: show_inspection(found, console, unmatched=True), terminal=terminal),
        printed(lambda console: show_difference(difference(name), console), terminal=terminal),
    ]


@pytest.mark.parametrize("name", [HOSTILE, LONG, RTL])
def test_hostile_names_are_text(name: str) -> None:
    for text in everything(name):
        assert not {"\x1b", "\u202e", "\r"} & set(text)
        assert len(text) > len(name)
    whole = "".join(everything(name)[0].split())
    assert ("[red]" in whole) == ("[red]" in name)  # as text, not as markup


@pytest.mark.parametrize("name", [HOSTILE, RTL])
def test_hostile_metadata_is_text(name: str) -> None:
    """What a file says of itself: precisions, the digest of its plan, and remarks on what measured it."""
    found = inspection("x")
    assert found.measured is not None
    found = replace(
        found,
        sites=[replace(site, precision=name) for site in found.sites],
        graph=replace(found.graph, plan=name),
        measured=found.measured.model_copy(update={"remark": name}),
    )
    for why in (False, True):
        text = printed(partial(show_inspection, found, why=why))
        assert not {"\x1b", "\u202e", "\r"} & set(text)


def test_tables_of_plain_names_fit_80_columns() -> None:
    for text in everything("x")[:2]:
        assert max(map(len, text.splitlines())) <= 80


def test_colour_is_for_terminals() -> None:
    assert any("\x1b[" in text for text in everything("x", terminal=True))
    assert not any("\x1b[" in text for text in everything("x"))


def test_what_changed_is_told() -> None:
    text = " ".join(printed(lambda console: show_difference(difference("site"), console)).split())
    for piece in (
        "different models",
        "size 1.00 MB -> 2.00 MB",
        "recipe keep: ['site'] -> []",
        "+50.0 %",
        "site int8 budget fp32 – 3.00",
        "outlier branch site: none -> 2 channels (1, 5)",
        "prefix none -> 7 1",
        "site: only in A",
    ):
        assert piece in text, piece


def test_rows_are_called_as_quantize_calls_them() -> None:
    rows = [ComparedRung(RowId.read(name, seed), 8, Pair(2.0, 3.0)) for name, seed in ROWS]
    found = replace(difference("site"), ladder=rows)
    lines = printed(lambda console: show_difference(found, console)).splitlines()
    assert [line[:27].strip() for line in lines if line.endswith("+50.0 % ")] == [
        "spike-aware",
        "spike-aware (fp8_e4m3)",
        "control: random, seed 1",
        "weight-only 8 bit",
    ]


def test_json_of_an_inspection() -> None:
    data = inspection("x").to_dict()
    assert list(data) == [
        "path",
        "glu_blocks",
        "sites",
        "unmatched",
        "graph",
        "measured",
        "profiles",
        "note",
        "outliers",
    ]
    assert json.loads(json.dumps(data)) == data  # plain data
    first, entry = data["sites"][0], sample_plan(2).to_dict()["sites"][0]
    entry["evidence"]["token_text"] = "x"
    named = entry | {"key": entry["key"] + "x", "node": entry["node"] + "x"}
    assert list(first.items()) == list(named.items())
    assert list(data["graph"]) == ["opset", "producer", "plan", "version", "operators", "logits", "no_logits"]
    assert data["measured"] == {"digest": "", "tokens": 9, "sequences": 1, "origin": "x", "remark": None}
    assert data["profiles"][first["key"]] == {
        "positions": [
            {"first": 0, "last": 0, "max": 9.0, "typical": 1.0},
            {"first": 1, "last": 1, "max": 0.0, "typical": 0.0},
        ],
        "tokens": [{"token": 1, "text": "x", "max": 9.0, "position": 0}],
    }


def test_json_of_a_site_without_a_plan_says_nothing_of_its_range() -> None:
    site = Site(key="k", node="n", role=Role.GLU_UP, layer=1, input="v", shape=(2, 3))
    bare = InspectedSite(site, "w4a16", None)
    head = {"key": "k", "node": "n", "role": "glu_up", "layer": 1, "expert": None, "shape": [2, 3], "input": "v"}
    told = {**head, "precision": "w4a16", "reason": None, "evidence": {}}
    assert list(bare.to_dict().items()) == list(told.items())
    seen = Evidence(ratio=2.0)
    told |= {"evidence": {"ratio": 2.0}, "measured": {"ratio": 2.0}}
    assert list(replace(bare, evidence=seen, measured=seen).to_dict().items()) == list(told.items())


def test_json_of_a_difference() -> None:
    side = {"precision": "int8", "reason": "budget", "ratio": 3.0}
    told = {
        "same_model": False,
        "changed": [{"key": "x", "a": side, "b": {"precision": "fp32", "reason": None, "ratio": None}}],
        "only_a": ["x"],
        "only_b": [],
        "branches": [{"value": "x", "a": (), "b": (1, 5)}],
        "factors": [],
        "prefix": {"tokens": {"a": [], "b": [7, 1]}},
        "recipe": {"keep": {"a": ["x"], "b": []}},
        "operators": {"x": {"a": 1, "b": 0}},
        "bytes": {"bytes": {"a": 1_000_000, "b": 2_000_000}},
        "ladder": [{"name": "x", "bits": 8, "seed": None, "a": 2.0, "b": 3.0}],
    }
    assert json.dumps(difference("x").to_dict()) == json.dumps(told)
    assert replace(difference("x"), bytes=None).to_dict()["bytes"] == {}
