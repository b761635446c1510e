"""Speed in the report of OUT: whether there is one to write into, and writing it there."""

from __future__ import annotations

from pathlib import Path

from spq_graph.decisions.recommend import recommend
from spq_graph.documents import artifact
from spq_graph.documents.interrupts import completed, held
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.report import Report
from spq_graph.documents.speed import Speed
from spq_graph.documents.staging import written
from spq_graph.terms.errors import UsageError
from spq_graph.views.card import render_card
from spq_graph.views.headline import headline
from spq_graph.views.page import render, shown_profiles
from spq_graph.views.picture import render_picture


def check_report(out: Path) -> None:
    """See to it, before anything takes long, that there is a report to write into.

    Raises:
        UsageError: OUT is no folder that `quantize` wrote.
    """
    absent = [name for name in (artifact.PLAN, artifact.REPORT, artifact.RANGES) if not (out / name).is_file()]
    if absent:
        raise UsageError(
            f"there is no {absent[0]} here, so no report to write into",
            where=str(out),
            remedy="name the folder that `spq-graph quantize` wrote, or leave out --report",
        )


def add_to_report(out: Path, speed: Speed) -> None:
    """Write what was measured of an artifact into its report, see which row serves best now, and draw the page again.

    Raises:
        SpqError: OUT is no folder that `quantize` wrote.
    """
    plan = Plan.load(out / artifact.PLAN)
    report = Report.load(out / artifact.REPORT)
    ours = report.verdict.summary == headline(plan, report)
    report.speed = speed
    report.verdict.recommended = recommend(plan, report)
    report.verdict.summary = headline(plan, report) if ours else report.verdict.summary
    profiles = shown_profiles(plan, Ranges.load(out / artifact.RANGES), report.tokens)
    page = render(plan, report, profiles)
    with held():
        written(
            {
                out / artifact.REPORT: report.to_json().encode(),
                out / artifact.PAGE: page.encode(),
                out / artifact.CARD: render_card(plan, report).encode(),
                out / artifact.PICTURE: render_picture(plan, report),
            }
        )
        completed(f"the report of {out} is complete")
