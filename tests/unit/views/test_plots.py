"""What notebooks show: tables in HTML, pandas, and figures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import spq_graph
from spq_graph.documents.plan import Plan
from spq_graph.documents.report import Report
from spq_graph.terms.errors import UsageError
from spq_graph.views import plots
from tests.support.samples import HOSTILE, sample_plan, sample_report
from tests.support.samples_ranges import sample_drawing, sample_ranges

KEY = "model.layers.1.mlp.down_proj"


def whole_report(*, hostile: bool = False) -> Report:
    return sample_report(hostile=hostile).model_copy(update={"layer": sample_drawing(hostile=hostile)})


def test_short_names() -> None:
    assert spq_graph.Plan is Plan
    assert spq_graph.Report is Report
    assert {"Ranges", "Recipe"} <= set(spq_graph.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        spq_graph.Nothing  # noqa: B018


def test_rich_display_leads_with_what_was_kept() -> None:
    plan = sample_plan()
    html = plan._repr_html_()
    assert html.index(KEY) < html.index("model.layers.5.mlp.down_proj")
    assert "2 of 56 sites kept, budget met; 12 of 57 sites shown" in html
    assert "Ready" in sample_report()._repr_html_()
    assert html.count("<tr>") == 13
    ranges = sample_ranges(plan)._repr_html_()
    assert ranges.index("value_1_glu_down") < ranges.index("value_3_glu_down")


def test_rich_display_shows_hostile_names_as_text() -> None:
    plan = sample_plan(hostile=True)
    for html in (plan._repr_html_(), sample_report(hostile=True)._repr_html_(), sample_ranges(plan)._repr_html_()):
        assert "<script" not in html
        assert "\x1b" not in html
        assert "\u202e" not in html
        assert HOSTILE not in html


def test_pandas() -> None:
    pytest.importorskip("pandas", reason="pandas is optional")
    plan = sample_plan()
    sites = plan.to_pandas()
    assert len(sites) == 57
    assert sites.loc[KEY, "ratio"] == 412.5
    assert sites.loc[KEY, "precision"] == "fp32"
    assert (sites.loc[KEY, "K"], sites.loc[KEY, "N"]) == (432, 160)
    ladder = sample_report().to_pandas()
    assert ladder.loc["fp32", "perplexity"] == pytest.approx(20.04)
    assert len(sample_report(ladder=False).to_pandas()) == 0
    assert sample_ranges(plan).to_pandas().loc["value_1_glu_down", "token_max"] == 660


def test_without_pandas_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    plan = sample_plan()
    for document in (plan, sample_report(), sample_ranges(plan)):
        with pytest.raises(UsageError, match="pandas") as caught:
            document.to_pandas()
        assert caught.value.remedy == "pip install pandas"


def test_plots_are_figures(tmp_path: Path) -> None:
    plan, report = sample_plan(), whole_report()
    figures = [
        plots.plot_ladder(report),
        plots.plot_ladder(report, 6),
        plots.plot_spikes(plan),
        plots.plot_profile(sample_ranges(plan), plan, KEY),
        plots.plot_layer(report),
        plots.plot_layer(report, "before"),
    ]
    for number, figure in enumerate(figures):
        assert isinstance(figure, Figure)
        figure.savefig(tmp_path / f"{number}.png")
    image = figures[2].axes[0].images[0].get_array()
    assert image is not None
    assert image.shape == (8, 7)
    assert image[1, 6] == 412.5
    assert len(figures[2].axes[0].patches) == 2


def test_plots_that_cannot_be_say_why() -> None:
    plan = sample_plan()
    old = sample_ranges(plan)
    for seen in old.values.values():
        seen.profile = None
    for call, words in (
        (lambda: plots.plot_ladder(sample_report(ladder=False)), "no ladder"),
        (lambda: plots.plot_ladder(sample_report(), 5), "no ladder at 5 bits"),
        (lambda: plots.plot_spikes(sample_plan(0)), "no site of this plan"),
        (lambda: plots.plot_profile(old, plan, KEY), "no profile"),
        (lambda: plots.plot_profile(old, plan, "nothing"), "no such site"),
        (lambda: plots.plot_layer(sample_report()), "no drawing"),
    ):
        with pytest.raises(UsageError, match=words):
            call()


def test_plots_of_hostile_names_are_drawn(tmp_path: Path) -> None:
    plan = sample_plan(hostile=True)
    key = next(site.key for site in plan.sites if site.key.startswith(KEY))
    plots.plot_layer(whole_report(hostile=True)).savefig(tmp_path / "layer.png")
    plots.plot_profile(sample_ranges(plan), plan, key).savefig(tmp_path / "profile.png")
