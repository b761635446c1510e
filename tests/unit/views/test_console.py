from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from spq_graph.documents.plan import Evidence
from spq_graph.terms.errors import UsageError
from spq_graph.terms.rows import RowId
from spq_graph.views import words
from spq_graph.views.console import ladder_table, print_error, sites_table, spike_table, summary
from tests.support.samples import sample_plan, sample_report, sample_rung


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
    [ladder_table(REPORT, PLAN), spike_table(PLAN), sites_table(PLAN), summary(PLAN, REPORT, Path("out"))],
    ids=["ladder", "spikes", "sites", "summary"],
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
    assert row.split() == ["spike-aware", "8", "20.05", "+0.04", "%", "3.2e-04", "100.0%", "2.78", "2/56", "54"]


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
    report.verdict.ready = False
    assert "Not ready" in shown(summary(PLAN, report))


def test_hostile_names_are_neither_markup_nor_control() -> None:
    plan, report = sample_plan(hostile=True), sample_report(hostile=True)
    for what in (spike_table(plan), sites_table(plan), summary(plan, report)):
        text = shown(what, width=400)
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "[red]" in shown(sites_table(plan), width=400)


def test_errors_say_what_where_and_how_to_go_on() -> None:
    console = Console(file=io.StringIO(), width=40)
    print_error(UsageError("unknown key [red]", where="a/" * 40 + "recipe.toml", remedy="remove it"), console)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "error: unknown key [red]",
        "   in: " + "a/" * 40 + "recipe.toml",
        "  try: remove it",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (412.5, "412"),
        (36.0, "36.0"),
        (1.6, "1.60"),
        (0.00448, "0.00448"),
        (0.00032, "3.2e-04"),
        (12345.6, "12,346"),
        (-2.0, "-2.00"),
        (float("inf"), "inf"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0004, "+0.04 %"), (-0.0001, "-0.01 %"), (0.1234, "+12.3 %"), (3.0, "+300 %"), (float("nan"), "not finite")],
)
def test_changes(share: float, text: str) -> None:
    assert words.percent(share) == text


@pytest.mark.parametrize(
    ("name", "seed", "text"),
    [
        ("fp32", None, "FP32"),
        ("everywhere", None, "quantized everywhere"),
        ("control_random", 1, "control: random, seed 1"),
        ("weight_only", None, "weight-only 8 bit"),
        ("spike_aware_fp8_e4m3", None, "spike-aware (fp8_e4m3)"),
        ("everywhere_symmetric", None, "quantized everywhere (symmetric)"),
        ("everywhere_with_smooth", None, "quantized everywhere with smooth"),
        ("spike_aware_without_peel", None, "spike-aware without peel"),
        ("something_new", None, "something new"),
    ],
)
def test_rung_names(name: str, seed: int | None, text: str) -> None:
    assert words.rung_name(sample_rung(RowId.read(name, seed), 8, 0.0)) == text


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        (Evidence(), "–"),
        (Evidence(token=7), "#7"),
        (Evidence(token=7, token_text="<s>"), "<s>"),
        (Evidence(token=7, token_text=" a"), "' a'"),
        (Evidence(token=7, token_text=""), "''"),
        (Evidence(token=7, token_text="\n\ud800"), "'\\n\\ud800'"),
    ],
)
def test_tokens(evidence: Evidence, text: str) -> None:
    assert words.token(evidence) == text


def test_what_was_won_back() -> None:
    assert words.won_back(REPORT, 8) == pytest.approx((0.0071 - 0.0004) / 0.0071)
    assert words.won_back(REPORT, 5) is None
