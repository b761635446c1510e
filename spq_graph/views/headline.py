"""The result in words: what it costs, how large and how fast it is, and what would serve better."""

from __future__ import annotations

from collections.abc import Iterator

from spq_graph.decisions.recommend import READY_WITHIN
from spq_graph.documents.plan import Plan
from spq_graph.documents.report import Report
from spq_graph.documents.speed import Speed, SpeedRow
from spq_graph.documents.verdict import Recommended
from spq_graph.terms.logits import Given
from spq_graph.terms.rows import EVERYWHERE, SPIKE_AWARE, RowKind
from spq_graph.views import words
from spq_graph.views.remedied import remedies


def headline(plan: Plan, report: Report) -> str:
    """The result in a sentence or two, with the numbers."""
    bits = plan.recipe.bits
    kept, scaled = words.kept_and_scaled(plan)
    tokens = f", {scaled} have scales by token" if scaled else ""
    treated = "".join(f", with {said}" for said in remedies(plan))
    sites = f"{kept} of {len(plan.counted)} sites stay in high precision{tokens}{treated}"
    size = f"{words.megabytes(report.source_bytes)} MB become {words.megabytes(report.bytes)} MB"
    outcome = f"{sites}{';' if treated else ' and'} {size}"
    everywhere, aware = report.rung(EVERYWHERE, bits), report.rung(SPIKE_AWARE, bits)
    change = words.over_fp32(report, aware) if aware else None
    if change is None:
        headless = report.logits is not None and report.logits.given is Given.NONE
        left = "accuracy cannot be measured without logits" if headless else "perplexity was not measured"
        return " ".join([f"At {bits} bits, {outcome}; {left}.", *_speed(report)])
    beside = (
        f" where quantizing everywhere changes it by {words.percent(words.over_fp32(report, everywhere))}"
        if everywhere
        else ""
    )
    result = [f"At {bits} bits, perplexity changes by {words.percent(change)} against FP32{beside}; {outcome}."]
    better = report.verdict.recommended
    return " ".join([*result, *_speed(report), *([] if better is None or better.in_out else [recommended(better)])])


def recommended(row: Recommended) -> str:
    """Which other row serves better, and by what."""
    name = words.row_name(row.id, f" {row.bits or 8} bit" if row.id.kind is RowKind.WEIGHT_ONLY else "")
    figures = f"{words.percent(row.loss)} at {words.megabytes(row.bytes)} MB"
    return f"Recommended instead: {name}, {figures}: by {row.by} the best row within {READY_WITHIN:.0%} of FP32."


def _speed(report: Report) -> Iterator[str]:
    """How fast it is beside what it was timed beside, where it was."""
    if (timed := beside_first(report.speed)) is None:
        return
    row, speed = timed
    length, prefill = next(iter(row.prefill.items()))
    decoding = f", and {row.decode.times:.2f} times in decoding" if row.decode and row.decode.times else ""
    first = words.timed_name(speed.rows[0])
    yield f"It is {prefill.times:.2f} times as fast as {first} on a prompt of {length} tokens{decoding}."


def beside_first(speed: Speed | None) -> tuple[SpeedRow, Speed] | None:
    """The artifact among what was timed; None where it was not, or beside nothing."""
    row = next((one for one in speed.rows[1:] if one.id == SPIKE_AWARE), None) if speed is not None else None
    return (row, speed) if row is not None and speed is not None and row.prefill else None
