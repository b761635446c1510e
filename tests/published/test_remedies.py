"""The benchmark of remedies asks for what it says, and writes what it measured."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.keeping import RESULTS
from benchmarks.published.markers import between
from benchmarks.remedies import FIXED, MARKER, PAGE, WAYS, only, table
from spq_graph.decisions.variants import rows_of
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.remedies import Remedies
from spq_graph.terms.rows import FP32, RowKind

FOUND = sorted(RESULTS.glob("remedies-*.json"))


def test_every_way_is_a_recipe_whose_plan_may_have_the_rows_that_are_shown() -> None:
    names = [name for way in WAYS for name in way.rows.values()]
    assert len(names) == len(set(names))
    for way in WAYS:
        recipe = Recipe.model_validate({**FIXED, **way.wanted})
        assert not recipe.may_scale_by_token
        offered = {*rows_of(recipe, remedies=tuple(Remedies.model_fields))}
        assert {row for row in way.rows if row.kind is not RowKind.FP32} <= offered


def test_one_remedy_alone_leaves_all_others_out() -> None:
    for name in Remedies.model_fields:
        alone = Recipe.model_validate({"remedies": only(name)}).remedies
        assert {n for n in Remedies.model_fields if getattr(alone, n).use != "never"} == {name}


def row(way: str, **more: Any) -> dict[str, Any]:
    nothing = {"kept": 0, "branches": 0, "channels": 0, "smoothed": 0, "prefix": None, "kl": 0.5, "kl_stderr": 0.01}
    return {"way": way, "perplexity": 30.0, "bytes": 500_000_000, **nothing, **more}


def test_the_table() -> None:
    rows = [
        row(FP32.name),
        row("everywhere", perplexity=60.0, bytes=139_400_000),
        row("`auto`", kept=3, branches=93, channels=9216, smoothed=30, kl=0.00612, kl_stderr=None, bytes=160_000_000),
    ]
    assert table(rows).splitlines()[2:] == [
        "| everywhere | 0.5000 ± 0.0100 | +100.00 % | – | – | – | 139 |",
        "| `auto` | 0.0061 | +0.00 % | 3 | 93 (9,216) | 30 | 160 |",
    ]


@pytest.mark.parametrize("file", FOUND[-1:], ids=lambda file: file.name)
def test_the_page_says_what_was_measured_last(file: Any) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert between(page, MARKER, table(json.loads(file.read_text(encoding="utf-8"))["rows"])) == page
