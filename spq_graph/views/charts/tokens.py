"""Where in the sequence an activation is large, as a figure of matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spq_graph.documents.token_profile import TokenProfile
from spq_graph.views import words
from spq_graph.views.charts.svg import LIGHT, Palette, drawing_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIZE = (360, 190)  # px at natural size
_TICKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)


def profile_figure(profile: TokenProfile, median: float, palette: Palette = LIGHT) -> Figure:
    """Draw the largest and the typical token maximum by position.

    Args:
        profile: what calibration saw along the sequence.
        median: of all token maxima, drawn as a line.
        palette: its colours.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    stretches = profile.stretches()
    with drawing_style():
        figure = Figure(figsize=(_SIZE[0] / 72, _SIZE[1] / 72))
        axes = figure.add_axes((0.105, 0.17, 0.885, 0.79))
        edges = [s.first for s in stretches] + [stretches[-1].last + 1]
        # Position 0 needs a place on a logarithmic axis: everything is drawn one further on.
        x = [edge + 1 for edge in edges]
        least = min((s.typical for s in stretches if s.typical > 0), default=1.0) / 2
        largest = [max(s.peak.value, least) for s in stretches]
        typical = [max(s.typical, least) for s in stretches]
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.stairs(largest, x, baseline=least, fill=True, color=palette.high_soft)
        axes.stairs(largest, x, baseline=None, color=palette.high, linewidth=1.8)
        axes.stairs(typical, x, baseline=None, color=palette.int, linewidth=1.8)
        if median > 0:
            axes.axhline(median, color=palette.muted, linewidth=1, linestyle=(0, (3, 3)))
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(least, max(largest) * 1.5)
        axes.xaxis.set_major_locator(FixedLocator([tick + 1 for tick in _TICKS if tick <= edges[-1]]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value - 1:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(base=10, numticks=5))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: words.number(value, 1)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.tick_params(length=0, pad=5, labelsize=10, labelcolor=palette.muted)
        axes.grid(axis="y", color=palette.line, linewidth=1, zorder=0)
        axes.set_axisbelow(True)
        axes.set_frame_on(False)
    return figure
