"""The model card of OUT: what it was made of, how, at what loss, in the form that the Hugging Face Hub reads.

Metadata as in https://huggingface.co/docs/hub/model-cards. Names come from models and files: they are set as code, and
what would end that is exchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from spq_graph import __version__
from spq_graph.documents.json_text import json_text
from spq_graph.documents.plan import Plan
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.report import Report, Rung
from spq_graph.terms.form import OWN, Form
from spq_graph.terms.rows import EVERYWHERE, FP32, SPIKE_AWARE, WEIGHT_ONLY
from spq_graph.views import words

_TEMPLATES = Path(__file__).with_name("templates")
_ROWS = (FP32, EVERYWHERE, SPIKE_AWARE, WEIGHT_ONLY)
_MOST_KEPT = 40


def render_card(plan: Plan, report: Report | None = None) -> str:
    """The card, README.md.

    Args:
        plan: what was decided.
        report: what came of it; None where nothing was measured.

    Returns:
        Markdown behind metadata in YAML, the same bytes for the same inputs.
    """
    kept = sorted(plan.kept, key=lambda site: (-(site.evidence.ratio or 0.0), site.key))
    return (
        _environment()
        .get_template("card.md.j2")
        .render(
            metadata="\n".join(_yaml(_metadata(plan, report))),
            plan=plan,
            report=report,
            words=words,
            scheme=scheme(plan),
            version=__version__,
            came=_came(plan),
            rows=main_rows(plan, report),
            kept=kept[:_MOST_KEPT],
            more=len(kept) - _MOST_KEPT,
            remedies=sorted(Counter(t.remedy for t in plan.treatments if t.applied for _ in t.sites).items()),
            recipe=recipe_file(plan.recipe),
            operators=[f"spq::{OWN[form]}" for form in OWN if plan.in_form(form)],
        )
    )


@cache
def _environment() -> Environment:
    """Where the template comes from, once: what it is compiled to is kept there."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=False,  # noqa: S701 - Markdown, in which every name is set as code
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"code": _code, "number": words.number, "percent": words.percent, "error": words.error}
    return environment


def main_rows(plan: Plan, report: Report | None) -> list[Rung]:
    """What is decided between, in the widths of the plan: the source, everywhere, the plan, and weights alone."""
    ladder = report.ladder if report is not None else ()
    return [rung for row in _ROWS for rung in ladder if rung.id == row and _shown(rung, plan)]


def recipe_file(recipe: Recipe) -> str:
    """What of a recipe is not the default, as the TOML that `--recipe` takes."""
    return words.recipe_lines(recipe.model_dump(mode="json", exclude_defaults=True))


def scheme(plan: Plan) -> str:
    """What most people call it: W8A8, FP8, or 8-bit weights."""
    if plan.integer_sites or words.kept_and_scaled(plan)[1]:
        return f"W{plan.recipe.bits}A{plan.recipe.bits}"
    return "FP8" if plan.in_form(Form.OPERATOR) else "8-bit weights"


def _shown(rung: Rung, plan: Plan) -> bool:
    return rung.bits in (None, plan.recipe.bits) or rung.id == WEIGHT_ONLY


def _came(plan: Plan) -> str:
    """What it was made of, in words."""
    model = plan.model
    if model.hub is None:
        return _code(model.origin)
    at = f" at {_code(model.revision)}" if model.revision is not None else ""
    return f"[{_code(model.hub)}](https://huggingface.co/{model.hub}){at}"


def _metadata(plan: Plan, report: Report | None) -> dict[str, Any]:
    """What the Hub sorts and filters by; nothing that is not known."""
    model, runtime = plan.model, plan.recipe.profile.runtime
    based = {"base_model": [model.hub], "base_model_relation": "quantized"} if model.hub is not None else {}
    tags = ["onnx", runtime, scheme(plan).lower().replace(" ", "-"), "quantized", "spq-graph"]
    licence = {"license": model.license, "license_name": model.license_name}
    found = based | {name: words.printable(said) for name, said in licence.items() if said is not None}
    found |= {"library_name": "onnx", "pipeline_tag": "text-generation", "tags": list(dict.fromkeys(tags))}
    measured = list(_results(report, plan.recipe.bits)) if report is not None else []
    if report is None or report.text is None or not measured:
        return found
    text = {"name": words.printable(report.text.origin) or "text", "type": "text"}
    result = {"task": {"type": "text-generation"}, "dataset": text, "metrics": measured}
    name = words.printable(model.hub or model.origin)
    return found | {"metrics": ["perplexity"], "model-index": [{"name": name, "results": [result]}]}


def _results(report: Report, bits: int) -> Iterator[dict[str, Any]]:
    """The figures of what lies in OUT."""
    rung = report.rung(SPIKE_AWARE, bits)
    if rung is not None:
        yield {"type": "perplexity", "value": round(rung.perplexity, 4), "name": "Perplexity"}
        if rung.kl is not None:
            yield {"type": "kl", "value": round(rung.kl, 6), "name": "KL divergence from FP32, nats a token"}


def _yaml(value: Mapping[str, Any]) -> Iterator[str]:
    """Plain data as YAML, of which JSON's texts and numbers are a part."""
    for key, one in value.items():
        if isinstance(one, Sequence) and not isinstance(one, str):
            yield f"{key}:"
            yield from (f"  - {json_text(item, 'README.md', indent=None)}" for item in one)
        else:
            yield f"{key}: {json_text(one, 'README.md', indent=None)}"


def _code(text: str) -> str:
    """A name, as code that can stand in a table and in a link."""
    return "`" + words.printable(text).translate({ord("`"): "'", ord("|"): "¦"}) + "`"
