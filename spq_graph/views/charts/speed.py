"""One measurement of `bench`, as a figure of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spq_graph.documents.speed import SpeedRow
from spq_graph.terms.rows import RowKind
from spq_graph.views import words
from spq_graph.views.charts.ladder import ROW, WIDTH, draw_row
from spq_graph.views.charts.svg import LIGHT, Palette, drawing_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def speed_figure(rows: Sequence[tuple[SpeedRow, float, str]], palette: Palette = LIGHT) -> Figure:
    """Draw how many times faster than the first row each of them is.

    Args:
        rows: with the ratio, and what was measured in words, from top to bottom.
        palette: its colours.
    """
    from matplotlib.figure import Figure

    with drawing_style():
        figure = Figure(figsize=(WIDTH / 72, len(rows) * ROW / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(0, 1.03 * max(times for _, times, _ in rows))
        for place, (row, times, told) in enumerate(rows):
            ours = row.id.kind is RowKind.SPIKE_AWARE
            colour = palette.good if ours else palette.muted
            name = words.timed_name(row)
            draw_row(axes, place, name, f"{told}, {times:.2f}×", [times], colour, palette, bold=ours)
    return figure
