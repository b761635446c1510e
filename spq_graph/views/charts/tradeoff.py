"""What rows lose against what they win, as a figure of matplotlib: size, or speed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from spq_graph.decisions.recommend import times_faster
from spq_graph.documents.report import Report, Rung
from spq_graph.terms.rows import EVERYWHERE, FP32, SPIKE_AWARE, WEIGHT_ONLY
from spq_graph.terms.targets import Use
from spq_graph.views import words
from spq_graph.views.charts.ladder import WIDTH, loss_scale
from spq_graph.views.charts.svg import LIGHT, Palette, drawing_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHT = 230  # px at natural size
_NAMED = (FP32, EVERYWHERE, SPIKE_AWARE, WEIGHT_ONLY)
_APART = 0.085  # of the height: two names that stand closer run into each other


@dataclass(frozen=True, slots=True)
class Point:
    """One row: its loss, as a share of the perplexity of FP32, and what it has instead, in words as well."""

    rung: Rung
    loss: float
    value: float
    told: str


def sizes(report: Report, bits: int) -> list[Point]:
    """Rows at a number of bits, and those that have none, by megabytes of their weights; no controls."""
    return [
        Point(rung, loss, rung.bytes / 1e6, f"{words.megabytes(rung.bytes)} MB")
        for rung, loss in _rungs(report, bits)
        if not rung.id.kind.startswith("control")
    ]


def speeds(report: Report, bits: int, use: Use) -> list[Point]:
    """Those that were timed, by how many times faster they are than the first for a use."""
    timed = {row.id: row for row in report.speed.rows} if report.speed is not None else {}
    found = [(rung, loss, times_faster(timed[rung.id], use)) for rung, loss in _rungs(report, bits) if rung.id in timed]
    return [Point(rung, loss, times, f"{times:.2f}×") for rung, loss, times in found if times is not None]


def _rungs(report: Report, bits: int) -> Iterator[tuple[Rung, float]]:
    for rung in report.ladder:
        loss = words.over_fp32(report, rung)
        if loss is not None and isfinite(loss) and (rung.bits in (bits, None) or rung.id == WEIGHT_ONLY):
            yield rung, loss


def tradeoff_figure(points: Sequence[Point], palette: Palette = LIGHT) -> Figure:
    """Draw loss from left to right, and what is won upwards; the rows that people choose between have their names.

    Args:
        points: what is drawn; losses are finite.
        palette: its colours.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with drawing_style():
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
        axes = figure.add_axes((0.09, 0.13, 0.9, 0.84))
        loss_scale(axes, [100 * point.loss for point in points], palette)
        top = max(point.value for point in points)
        axes.set_ylim(0, 1.12 * top)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.tick_params(axis="y", length=0, pad=4, labelsize=10, labelcolor=palette.muted)
        axes.grid(axis="y", color=palette.line, linewidth=1, zorder=0)
        for point in sorted(points, key=lambda point: point.rung.id == SPIKE_AWARE):
            axes.plot(
                100 * point.loss, point.value, "o", color=_colour(point, palette), markersize=9, zorder=3, clip_on=False
            )
        _name(axes, [point for point in points if point.rung.id in _NAMED], 1.12 * top, palette)
    return figure


def _colour(point: Point, palette: Palette) -> str:
    if point.rung.id == SPIKE_AWARE:
        return palette.good
    return palette.bad if point.rung.id == EVERYWHERE else palette.muted


def _name(axes: Axes, points: Sequence[Point], height: float, palette: Palette) -> None:
    """Write names beside their dots, to the side where there is room, from below with what parts two lines between.

    A name that had to move has a line to its dot.
    """
    line = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 5}
    middle = axes.transAxes.inverted()
    below = -1.0
    for point in sorted(points, key=lambda point: point.value):
        across = middle.transform(axes.transData.transform((100 * point.loss, point.value)))[0]
        place = max(point.value / height, below + _APART)
        left = across > 0.5
        axes.annotate(
            f"{words.rung_name(point.rung)}, {point.told}",
            (100 * point.loss, point.value),
            (across - 0.03 if left else across + 0.03, place),
            textcoords=axes.transAxes,
            arrowprops={**line, "color": palette.muted, "relpos": (1.0 if left else 0.0, 0.5)},
            ha="right" if left else "left",
            va="center",
            color=palette.ink,
            weight="bold" if point.rung.id == SPIKE_AWARE else "normal",
        )
        below = place
