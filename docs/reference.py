"""Writes the reference: `python docs/reference.py`; a test holds it to the code.

Recipe and plan come from their schemas, refusals from where they are made.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import EnumMeta
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.changes import Peel, Prefix, Scale
from spq_graph.documents.json_text import json_text
from spq_graph.documents.model_ref import ModelRef
from spq_graph.documents.plan import Evidence, Plan, Reason, SitePlan
from spq_graph.documents.preset import presets
from spq_graph.documents.recipe import OneOf, Override, Recipe, json_schema
from spq_graph.documents.remedies import PeelSettings, PrefixSettings, Remedies, SmoothSettings
from spq_graph.documents.search import Search
from spq_graph.documents.treatment import Cause, Treatment
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site, Unmatched
from spq_graph.views.words import CAUSES, REASONS

HERE = Path(__file__).parent
NOTE = "<!-- Written by python docs/reference.py from the schema: do not edit. -->\n"


def type_words(kind: Any) -> str:
    """A type annotation for people."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    origin, arguments = get_origin(kind), get_args(kind)
    inner = [type_words(one) for one in arguments if one is not Ellipsis] if origin is not Literal else []
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(inner)
    if origin in (list, tuple):
        return f"[{', '.join(inner)}]" if origin is tuple and Ellipsis not in arguments else f"list of {inner[0]}"
    if origin is dict:
        return f"object of {inner[1]} by {inner[0]}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    if isinstance(kind, EnumMeta) or (isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))):
        return f"[{kind.__name__}](#{kind.__name__.lower()})"
    return names.get(kind, str(kind))


def keys_of(model: type[Any]) -> Iterator[tuple[str, FieldInfo]]:
    """A model's fields as JSON has them: those of a site stand among those of its entry."""
    if is_dataclass(model):
        hints = get_type_hints(model, include_extras=True)
        yield from ((inner.name, FieldInfo.from_annotation(hints[inner.name])) for inner in fields(model))
        return
    for name, field in model.model_fields.items():
        if field.annotation is Site:
            yield from keys_of(Site)
        else:
            yield name, field


def fields_of(model: type[Any], *, defaults: bool) -> list[str]:
    """A table of a model's fields."""
    head = "| field | type | default | |" if defaults else "| key | type | |"
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    for name, field in keys_of(model):
        limits = [str(one) for one in field.metadata]
        bounds = {"Ge(ge=": "at least ", "Gt(gt=": "above ", "Le(le=": "at most ", "Lt(lt=": "below "}
        told = [
            words + text.removeprefix(start).rstrip(")")
            for text in limits
            for start, words in bounds.items()
            if text.startswith(start)
        ]
        words = next((type_words(Literal[limit.words]) for limit in field.metadata if isinstance(limit, OneOf)), None)
        kind = ", ".join([words or type_words(field.annotation), *told])
        default = "" if field.default is PydanticUndefined else f"`{field.default!r}`"
        if isinstance(field.default, BaseModel):
            default = "its own"
        if field.default is None or field.default == ():
            default = "–"
        cells = [
            f"`{field.alias or name}`",
            kind,
            *([default] if defaults else []),
            (field.description or "").replace("||", "‖"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def values_of(title: str, rows: list[tuple[str, str]]) -> list[str]:
    """A section that lists an enumeration."""
    return ["", f"## {title}", "", "| value | |", "|---|---|", *(f"| `{name}` | {words} |" for name, words in rows)]


def recipe() -> str:
    """The page of the recipe."""
    text = [
        "# Recipe",
        "",
        NOTE,
        "A TOML file for `--recipe`. Options of the command line are laid over it; unknown keys",
        "are refused. Every plan holds the recipe that it was made from. [JSON Schema](recipe.schema.json), which",
        "`spq-graph presets --schema` prints as well; editors that know TOML take it from a first line",
        "`#:schema ./recipe.schema.json`.",
        "",
        *fields_of(Recipe, defaults=True),
        "",
        "## Override",
        "",
        *fields_of(Override, defaults=False),
        "",
        "## Remedies",
        "",
        *fields_of(Remedies, defaults=False),
        "",
        "## PeelSettings",
        "",
        "Outlier branches, [on a page of their own](remedies.md): the table `[remedies.peel]`.",
        "",
        *fields_of(PeelSettings, defaults=True),
        "",
        "## SmoothSettings",
        "",
        "Smoothing, [on a page of its own](smoothing.md): the table `[remedies.smooth]`.",
        "",
        *fields_of(SmoothSettings, defaults=True),
        "",
        "## PrefixSettings",
        "",
        "A prefix, [on a page of its own](prefix.md): the table `[remedies.prefix]`.",
        "",
        *fields_of(PrefixSettings, defaults=True),
        "",
        "```toml",
        "bits = 6",
        "kl_budget = 0.01",
        'overrides = [{pattern = "*.0.mlp.*", precision = "high"}]',
        "```",
        "",
        "## Presets",
        "",
        "Recipes by name: `--preset NAME`, of `quantize` and `plan`. A file for `--recipe` is laid over it, and",
        "options over both. What a format is called on the target is settled by that; where the target has none that",
        "comes near, it is refused. `spq-graph presets NAME` prints one as a file.",
        "",
        "| preset | sets | |",
        "|---|---|---|",
        *(f"| `{one.name}` | `{_one_line(one.text)}` | {one.about} |" for one in presets().values()),
    ]
    return "\n".join(text) + "\n"


def _one_line(text: str) -> str:
    """What a TOML file sets, without its comments."""
    return "; ".join(line for line in text.splitlines() if line and not line.startswith("#"))


def schema() -> str:
    """What a recipe may hold, as JSON Schema."""
    return json_text(json_schema(), "recipe.schema.json") + "\n"


def plan() -> str:
    """The page of the plan."""
    text = [
        "# Plan",
        "",
        NOTE,
        "`plan.json`: what was decided, with the reason and the evidence. Keys keep their",
        "meaning; there may come more.",
        "",
        *fields_of(Plan, defaults=False),
    ]
    for model in (SitePlan, Evidence, Treatment, Peel, Scale, Prefix, Search, ModelRef, CalibrationRef, Unmatched):
        text += [
            "",
            f"## {model.__name__}",
            "",
            (model.__doc__ or "").strip().splitlines()[0],
            "",
            *fields_of(model, defaults=False),
        ]
    text += ["", "## Recipe", "", "See [its own page](recipe.md)."]
    text += values_of("Reason", [(one.value, REASONS[one]) for one in Reason])
    text += values_of("Cause", [(one.value, CAUSES[one]) for one in Cause])
    text += values_of("Precision", [(one.value, one.row.words) for one in Precision])
    text += values_of("Role", [(one.value, "") for one in Role])
    return "\n".join(text) + "\n"


def refusals() -> str:
    """The page of refusals."""
    sys.path.insert(0, str(HERE.parent))  # run as a file, this folder is there and not the one above it
    from docs.refusals import page

    text = [
        "# Refusals",
        "",
        NOTE.replace("the schema", "the code"),
        "What spq-graph says when it does not go on, and what to do then. Words in capitals stand for what is put in.",
        "Exit status 1: failed; 2: the request is wrong; 3: a check did not hold. For your own program each is an",
        "exception, [by kind](integrating.md); tests make each of these happen and do what is said against it.",
        *page(),
    ]
    return "\n".join(text) + "\n"


PAGES = {"recipe.md": recipe, "recipe.schema.json": schema, "plan.md": plan, "refusals.md": refusals}


if __name__ == "__main__":
    for file, write in PAGES.items():
        (HERE / file).write_text(write(), encoding="utf-8")
