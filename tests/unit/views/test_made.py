from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from spq_graph.documents.verdict import Advice, Recommended, Standing
from spq_graph.terms.rows import WEIGHT_ONLY
from spq_graph.views.made import ladder_table, spike_table, summary
from spq_graph.views.page import render
from tests.support.samples import sample_plan, sample_report


def shown(what: RenderableType, *, width: int = 80, terminal: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=terminal, color_system="truecolor" if terminal else "auto"
    )
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


PLAN, REPORT = sample_plan(), sample_report()


@pytest.mark.parametrize(
    "what",
    [ladder_table(REPORT, PLAN), spike_table(PLAN), summary(PLAN, REPORT, Path("out"))],
    ids=["ladder", "spikes", "summary"],
)
def test_fits_80_columns_without_losing_text_and_is_plain_off_a_terminal(what: RenderableType) -> None:
    text = shown(what)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    assert "\x1b" in shown(what, terminal=True)


def test_the_ladder_keeps_its_order() -> None:
    text = shown(ladder_table(REPORT, PLAN), width=120)
    names = [
        "FP32",
        "quantized everywhere (symmetric)",
        "spike-aware",
        "control: lowest ratio",
        "seed 3",
        "weight-only",
    ]
    places = [text.index(name) for name in names]
    assert places == sorted(places)
    row = next(line for line in text.splitlines() if "spike-aware" in line)
    assert row.split() == [
        "spike-aware",
        "8",
        "20.05",
        "0.24",
        "+0.04",
        "%",
        "3.2e-04",
        "2.0e-05",
        "100.0%",
        "2.78",
        "2/56",
        "54",
    ]
    one_window = [rung.model_copy(update={"perplexity_stderr": None, "kl_stderr": None}) for rung in REPORT.ladder]
    row = next(
        line
        for line in shown(ladder_table(REPORT.model_copy(update={"ladder": one_window}), PLAN)).splitlines()
        if "spike-aware" in line
    )
    assert row.split().count("?") == 2  # not known, which is not 0


def test_spikes_lead_with_kept_sites_and_never_leave_one_out() -> None:
    lines = shown(spike_table(PLAN, limit=1)).splitlines()
    rows = [line.split() for line in lines if line.startswith(" model.")]
    assert [(row[0], row[1], row[-1]) for row in rows] == [
        ("model.layers.1.mlp.down_proj", "412", "spike"),
        ("model.layers.3.mlp.down_proj", "36.0", "spike"),
    ]


def test_the_summary_says_ready_why_what_and_where() -> None:
    text = shown(summary(PLAN, REPORT, Path("out")))
    for piece in (
        "Ready",
        "+0.71 %",
        "model.layers.1.mlp.down_proj",
        "7.64 MB -> 2.78 MB",
        "54 integer, of 54 planned",
    ):
        assert piece in text
    assert str(Path("out") / "report.html") in text


def test_an_unready_result_says_so() -> None:
    report = sample_report()
    report.verdict.status = Standing.NOT_READY
    assert "Not ready" in shown(summary(PLAN, report))
    report.verdict.status = Standing.NOT_MEASURED
    assert "Not measured" in shown(summary(PLAN, report))


def test_hostile_names_are_neither_markup_nor_control() -> None:
    plan, report = sample_plan(hostile=True), sample_report(hostile=True)
    for what in (spike_table(plan), summary(plan, report)):
        text = shown(what, width=400)
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "[red]" in shown(spike_table(plan), width=400)


def test_what_is_left_to_try_and_what_serves_better_stand_in_the_summary() -> None:
    recommended = Recommended(
        id=WEIGHT_ONLY, bits=8, loss=0.0051, bytes=226_000_000, by="size", in_out=False, recipe={"bits": 7}
    )
    advice = [Advice(say="all may be kept", recipe={"candidate_ratio": 0.0, "max_kept": 1.0})]
    verdict = REPORT.verdict.model_copy(update={"advice": advice, "recommended": recommended})
    report = REPORT.model_copy(update={"verdict": verdict})
    text = " ".join(shown(summary(PLAN, report, Path("out"))).replace("│", " ").split())
    assert "Recommended instead: weight-only 8 bit, +0.51 % at 226 MB: by size the best row within 1% of FP32." in text
    assert "candidate_ratio = 0.0; max_kept = 1.0: all may be kept" in text
    assert "its recipe: bits = 7" in text
    page = render(PLAN, report)
    assert "Recommended instead: weight-only 8 bit, +0.51 % at 226 MB" in page
    assert "<code>candidate_ratio = 0.0; max_kept = 1.0</code>: all may be kept" in page
