"""What lies in OUT for people: a model card, the recipe as a file, and the report as a picture."""

from __future__ import annotations

from pathlib import Path

from spq_graph.documents import artifact
from spq_graph.documents.plan import Plan
from spq_graph.documents.report import Report
from spq_graph.views.card import recipe_file, render_card
from spq_graph.views.picture import render_picture


def write_card(staging: Path, plan: Plan, report: Report | None = None) -> None:
    """Write README.md and recipe.toml, and report.png where there is a report.

    Args:
        staging: what becomes OUT.
        plan: as it lies there.
        report: what was measured; None where nothing was.
    """
    (staging / artifact.CARD).write_text(render_card(plan, report), encoding="utf-8")
    if report is not None:
        (staging / artifact.PICTURE).write_bytes(render_picture(plan, report))
    head = "# What of the recipe is not the default: spq-graph quantize MODEL --recipe recipe.toml"
    (staging / artifact.RECIPE).write_text(f"{head}\n{recipe_file(plan.recipe)}".rstrip() + "\n", encoding="utf-8")
