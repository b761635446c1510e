"""Inspections and differences in the terminal: names are text, and colour is for terminals."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from spq_graph.showing import show_difference, show_inspection
from tests.unit.samples import HOSTILE, sample_plan

LONG = "model." + "very_long_" * 30 + "name"
RTL = "\u05d0\u05d1\u05d2\u202e"


def inspection(name: str) -> dict[str, Any]:
    plan = sample_plan(2).to_dict()
    for site in plan["sites"]:
        site["key"] += name
        site["node"] += name
        site["evidence"]["token_text"] = name
    plan["unmatched"][0]["node"] += name
    profile = {
        "positions": [
            {"first": 0, "last": 0, "max": 9.0, "typical": 1.0},
            {"first": 1, "last": 1, "max": 0.0, "typical": 0.0},
        ],
        "tokens": [{"token": 1, "text": name, "max": 9.0, "position": 0}],
    }
    return {
        "path": name,
        "glu_blocks": 2,
        "sites": plan["sites"],
        "unmatched": plan["unmatched"],
        "graph": {"opset": 21, "producer": name, "plan": None, "version": None, "operators": {}},
        "measured": {"digest": "", "tokens": 9, "sequences": 1, "origin": name},
        "profiles": {site["key"]: profile for site in plan["sites"]},
    }


def difference(name: str) -> dict[str, Any]:
    side = {"precision": "int8", "reason": "budget", "ratio": 3.0}
    return {
        "same_model": False,
        "only_a": [name],
        "only_b": [],
        "changed": [{"key": name, "a": side, "b": {"precision": "fp32", "reason": None, "ratio": None}}],
        "recipe": {"keep": {"a": [name], "b": []}},
        "operators": {name: {"a": 1, "b": 0}},
        "bytes": {"bytes": {"a": 1_000_000, "b": 2_000_000}},
        "ladder": [{"name": name, "bits": 8, "seed": None, "a": 2.0, "b": 3.0}],
    }


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
        "site: only in A",
    ):
        assert piece in text, piece
