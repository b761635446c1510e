"""The ladder, as a figure of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING

from spq_graph.documents.report import Report, Rung
from spq_graph.terms.rows import RowKind
from spq_graph.views import words
from spq_graph.views.charts.svg import LIGHT, Palette, drawing_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 360  # px at natural size: narrow enough for a phone, where it is shown as it is
ROW, _AXIS = 35, 30


def ladder_changes(report: Report) -> dict[int, list[tuple[Rung, float]]]:
    """The rungs by their bits, each with its change of perplexity against FP32 as a share."""
    changes: dict[int, list[tuple[Rung, float]]] = {}
    for rung in report.ladder:
        change = words.over_fp32(report, rung)
        if rung.bits is not None and change is not None:
            changes.setdefault(rung.bits, []).append((rung, change))
    return changes


def ladder_figure(rungs: Sequence[tuple[Rung, float]], every: Sequence[float], palette: Palette = LIGHT) -> Figure:
    """Draw perplexity over FP32, in per cent, one row a rung; seeds of one control share a row.

    Args:
        rungs: with the change of perplexity as a share, from top to bottom.
        every: the changes of all charts beside it, which share their scale.
        palette: its colours.
    """
    from matplotlib.figure import Figure

    rows = [list(group) for _, group in groupby(rungs, key=_row_key)]
    height = len(rows) * ROW + _AXIS
    with drawing_style():
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        axes = figure.add_axes((0, _AXIS / height, 1, 1 - _AXIS / height))
        loss_scale(axes, [100 * share for share in every if isfinite(share)], palette)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        for place, row in enumerate(rows):
            _draw_rung(axes, place, row, palette)
    return figure


def _draw_rung(axes: Axes, place: int, row: Sequence[tuple[Rung, float]], palette: Palette) -> None:
    rung = row[0][0]
    ours = words.stress(rung.id) == "ours"
    colour = palette.good if ours else palette.bad if rung.id.kind is RowKind.EVERYWHERE else palette.muted
    values = [100 * share for _, share in row if isfinite(share)]
    name = words.rung_name(rung)
    if len(row) > 1:
        name = f"{words.row_name(replace(rung.id, seed=None))}, {len(row)} seeds"
    shares = sorted(share for _, share in row)
    told = " … ".join(dict.fromkeys(words.percent(share) for share in (shares[0], shares[-1])))
    draw_row(axes, place, name, told, values, colour, palette, bold=ours)


def draw_row(
    axes: Axes, place: int, name: str, told: str, values: Sequence[float], colour: str, palette: Palette, *, bold: bool
) -> None:
    """Draw a line from zero to the farthest of the values, and all of them as dots, below a name and what is told."""
    across = axes.get_yaxis_transform()
    weight = "bold" if bold else "normal"
    axes.text(0, place - 0.18, name, transform=across, color=palette.ink, weight=weight)
    axes.text(1, place - 0.18, told, transform=across, color=palette.ink, weight=weight, ha="right")
    axes.plot([0, 1], [place + 0.14] * 2, transform=across, color=palette.line, linewidth=1.5, zorder=1)
    if values:
        axes.plot([0, max(values, key=abs)], [place + 0.14] * 2, color=colour, linewidth=4, zorder=2)
        axes.plot(values, [place + 0.14] * len(values), "o", color=colour, markersize=9, markeredgewidth=0, zorder=3)


def _row_key(item: tuple[Rung, float]) -> object:
    return replace(item[0].id, seed=None) if item[0].id.seed is not None else id(item[0])


def loss_scale(axes: Axes, values: Sequence[float], palette: Palette) -> None:
    """Perplexity over FP32 in per cent as the x axis, and no y axis.

    Linear, or logarithmic with a linear piece around zero where the values span more than a decade or so.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    sizes = [abs(value) for value in values if value] or [1.0]
    top, low = max(sizes), min(0.0, *values, 0.0)
    if top / min(sizes) > 20:
        first = max(floor(log10(min(sizes))), ceil(log10(top)) - 4, -1)
        axes.set_xscale("symlog", linthresh=10.0**first, linscale=0.8)
        powers = range(first, ceil(log10(top)) + 1)
        ticks = [0.0, *(10.0**power for power in powers[:: 2 if len(powers) > 5 else 1])]
        axes.set_xlim(min(low * 1.3, 0.0) - 0.04 * 10.0**first, top * 1.6)
        axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if tick <= top * 1.6]))
    else:
        axes.set_xlim(low * 1.15 - 0.02 * top, top * 1.06)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: "FP32" if value == 0 else f"{value:+,g} %"))
    axes.yaxis.set_major_locator(NullLocator())
    axes.tick_params(axis="x", length=0, pad=6, labelsize=10, labelcolor=palette.muted)
    axes.grid(axis="x", color=palette.line, linewidth=1, zorder=0)
    axes.set_axisbelow(True)
    axes.set_frame_on(False)
