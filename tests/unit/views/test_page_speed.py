"""Speed on the page: among the first figures, in the headline, and in a table of its own."""

from __future__ import annotations

from spq_graph.documents.speed import Decode, Prefill, Speed, SpeedRow
from spq_graph.terms.rows import RowId, RowKind
from spq_graph.views.page import render
from tests.support.pages import Page
from tests.support.samples import sample_plan, sample_report


def timed(times: float, decoding: float) -> Speed:
    """FP32 in 100 ms, and the artifact so many times faster."""

    def row(kind: RowKind, prefill: float, decode: float) -> SpeedRow:
        return SpeedRow(
            id=RowId(kind),
            target="cpu",
            bytes=1,
            load_seconds=1.0,
            resident_bytes=1,
            prefill={"128": Prefill(seconds=0.1 / prefill, times=prefill)},
            decode=Decode(tokens_per_second=10 * decode, times=decode),
        )

    rows = [row(RowKind.FP32, 1.0, 1.0), row(RowKind.SPIKE_AWARE, times, decoding)]
    return Speed(threads=1, rounds=3, past=128, processor="", environment={}, rows=rows)


def test_how_fast_it_is_stands_among_the_first_figures() -> None:
    page = Page(render(sample_plan(), sample_report(), []))
    assert "not timed spq-graph bench OUT --against SOURCE --report" in " ".join(page.text.split())
    plan, report = sample_plan(), sample_report()
    report.speed = timed(2.19, 2.84)
    told = Page(render(plan, report, []))
    assert "2.19× of FP32, a prompt of 128 tokens; 2.84× in decoding" in " ".join(told.text.split())
    assert "It is 2.19 times as fast as FP32 on a prompt of 128 tokens, and 2.84 times in decoding." in told.text
    sections = told.having("aria-labelledby")
    assert sections.index("speed") < sections.index("spikes")


def test_loading_has_columns_where_it_was_timed() -> None:
    plan, report = sample_plan(), sample_report()
    report.speed = timed(2.19, 2.84)
    assert "Resident, MB" in render(plan, report, [])
    report.speed.rows[0] = report.speed.rows[0].model_copy(update={"load_seconds": None, "resident_bytes": None})
    told = render(plan, report, [])
    assert "2.84" in told
    assert "Resident, MB" not in told
