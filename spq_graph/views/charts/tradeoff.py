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
_CLEAR = 0.055  # of the height: a name that is closer to the middle of a dot covers some of it
_RADIUS = 0.015  # of the width: of a dot


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
        _name(axes, points, 1.12 * top, palette)
    return figure


def _colour(point: Point, palette: Palette) -> str:
    if point.rung.id == SPIKE_AWARE:
        return palette.good
    return palette.bad if point.rung.id == EVERYWHERE else palette.muted


def _name(axes: Axes, points: Sequence[Point], height: float, palette: Palette) -> None:
    """Write names beside their dots, to the side where there is room, from below with what parts two lines between.

    A name that had to move, for another name or a dot that it would cover, has a line to its dot.
    """
    line = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 1, "shrinkB": 5}
    middle = axes.transAxes.inverted()
    dots = [(middle.transform(axes.transData.transform((100 * p.loss, p.value)))[0], p.value / height) for p in points]
    named = [(point, dot) for point, dot in zip(points, dots, strict=True) if point.rung.id in _NAMED]
    below = -1.0
    for point, (across, up) in sorted(named, key=lambda one: one[0].value):
        text, bold = f"{words.rung_name(point.rung)}, {point.told}", point.rung.id == SPIKE_AWARE
        left, wide = across > 0.5, _width(text, bold) / axes.bbox.width
        start = across - 0.03 if left else across + 0.03
        covers = (start - wide if left else start, start if left else start + wide)
        place = _uncovered(max(up, below + _APART), covers, dots)
        axes.annotate(
            text,
            (100 * point.loss, point.value),
            (start, place),
            textcoords=axes.transAxes,
            arrowprops={**line, "color": palette.muted, "relpos": (1.0 if left else 0.0, 0.5)},
            ha="right" if left else "left",
            va="center",
            color=palette.ink,
            weight="bold" if bold else "normal",
        )
        below = place


def _width(text: str, bold: bool) -> float:
    """Of a name, px of the figure."""
    import matplotlib as mpl
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    font = FontProperties(weight="bold" if bold else "normal")
    points = TextPath((0, 0), text, size=mpl.rcParams["font.size"], prop=font).get_extents().width
    return float(points * mpl.rcParams["figure.dpi"] / 72)


def _uncovered(place: float, covers: tuple[float, float], dots: Sequence[tuple[float, float]]) -> float:
    """The next place upwards where a name that is so wide covers no dot; all in shares of the axes."""
    within = sorted(up for across, up in dots if covers[0] - _RADIUS <= across <= covers[1] + _RADIUS)
    for up in within:
        if abs(up - place) < _CLEAR:
            place = up + _CLEAR
    return place
