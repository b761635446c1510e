"""Loss against size and against speed: which rows are drawn, where, and that their names can be told apart."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from spq_graph.documents.report import Report, Rung
from spq_graph.documents.speed import Decode, Prefill, Speed, SpeedRow
from spq_graph.terms.rows import BY_TOKEN, EVERYWHERE, FP32, SPIKE_AWARE, WEIGHT_ONLY, RowId, RowKind
from spq_graph.views.charts.tradeoff import sizes, speeds, tradeoff_figure
from tests.support.samples import sample_report, sample_rung

RANDOM = RowId(RowKind.CONTROL_RANDOM, seed=0)


def rung(row: RowId, loss: float, megabytes: float, bits: int | None = 8) -> Rung:
    return sample_rung(row, bits, loss).model_copy(update={"bytes": round(megabytes * 1e6)})


def timed(row: RowId, prefill: float, decode: float) -> SpeedRow:
    prompt = {"128": Prefill(seconds=1.0, times=prefill)}
    return SpeedRow(id=row, target="cpu", bytes=1, prefill=prompt, decode=Decode(tokens_per_second=1.0, times=decode))


@pytest.fixture
def report() -> Report:
    rows = [timed(FP32, 1.0, 1.0), timed(WEIGHT_ONLY, 1.0, 4.0), timed(SPIKE_AWARE, 2.0, 4.5)]
    ladder = [
        rung(FP32, 0.0, 500, None),
        rung(EVERYWHERE, 0.4, 220),
        rung(BY_TOKEN, 0.012, 222),
        rung(SPIKE_AWARE, 0.015, 221),
        rung(RANDOM, 0.3, 230),
        rung(WEIGHT_ONLY, 0.011, 226),
        rung(SPIKE_AWARE, 0.03, 221, 6),
        rung(RowId(RowKind.EVERYWHERE, with_remedy="smooth"), float("inf"), 220),
    ]
    speed = Speed(threads=1, rounds=3, past=128, processor="", environment={}, rows=rows)
    return sample_report().model_copy(update={"ladder": ladder, "speed": speed})


def test_rows_of_the_artifacts_bits_that_are_finite_and_no_controls(report: Report) -> None:
    found = sizes(report, 8)
    assert [point.rung.id for point in found] == [FP32, EVERYWHERE, BY_TOKEN, SPIKE_AWARE, WEIGHT_ONLY]
    assert [point.value for point in found] == [500, 220, 222, 221, 226]
    assert [point.loss for point in found] == pytest.approx([0.0, 0.4, 0.012, 0.015, 0.011])


@pytest.mark.parametrize(("use", "times"), [("prefill", [1, 2, 1]), ("decode", [1, 4.5, 4]), ("balanced", [1, 3, 2])])
def test_speed_is_that_of_the_use(report: Report, use: Any, times: list[float]) -> None:
    found = speeds(report, 8, use)
    assert [point.rung.id for point in found] == [FP32, SPIKE_AWARE, WEIGHT_ONLY]
    assert [point.value for point in found] == pytest.approx(times)


def test_without_speed_there_is_nothing_to_draw(report: Report) -> None:
    assert speeds(report.model_copy(update={"speed": None}), 8, "balanced") == []


def test_names_stand_apart_and_within_the_figure(report: Report) -> None:
    figure = tradeoff_figure(sizes(report, 8))
    [axes] = figure.axes
    told = [text for text in axes.texts if text.get_text()]
    assert [text.get_text() for text in told] == [
        "quantized everywhere, 220 MB",
        "spike-aware, 221 MB",
        "weight-only 8 bit, 226 MB",
        "FP32, 500 MB",
    ]
    places = [float(text.xyann[1]) for text in told]
    assert all(above - below >= 0.085 - 1e-9 for below, above in itertools.pairwise(places))
    assert max(places) <= 1


def test_a_name_covers_no_dot_of_another_row(report: Report) -> None:
    """What quantizing everywhere costs stands on the right, and its name reaches over what lies beside it."""
    ladder = [rung(FP32, 0.0, 2521, None), rung(EVERYWHERE, 0.26, 637), rung(WEIGHT_ONLY, 0.0053, 647)]
    figure = tradeoff_figure(sizes(report.model_copy(update={"ladder": [*ladder, rung(SPIKE_AWARE, 0.0012, 709)]}), 8))
    renderer = FigureCanvasAgg(figure).get_renderer()
    [axes] = figure.axes
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in axes.texts}
    dots = [axes.transData.transform(line.get_xydata()[0]) for line in axes.lines if len(line.get_xydata()) == 1]
    assert len(boxes) == len(dots) == 4
    covered = [(name, tuple(dot)) for name, box in boxes.items() for dot in dots if box.contains(*dot)]
    assert not covered
