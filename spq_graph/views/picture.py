"""The verdict and the rows that it compares as one picture, to be shown where a page cannot be: in a post, or a card.

It says nothing that is not in the report, and no time or place: the same report gives the same bytes.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from spq_graph import __version__
from spq_graph.documents.plan import Plan
from spq_graph.documents.report import Report, Rung
from spq_graph.documents.verdict import Standing
from spq_graph.terms.rows import FP32, RowKind
from spq_graph.views import words
from spq_graph.views.card import main_rows, scheme
from spq_graph.views.charts.svg import LIGHT, Palette, drawing_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What pages that show a link cut a picture to; text at half of it still reads.
WIDTH, HEIGHT = 1200, 630
_DPI = 100
_LEFT, _RIGHT, _TOP = 56, WIDTH - 56, HEIGHT - 64
# Right ends of the columns behind a row's name and its bar, with what each says.
_COLUMNS = ((700, "perplexity"), (860, "over FP32"), (1010, "KL"), (_RIGHT, "MB"))
_TITLE = 820  # wide, beside the longest verdict
_BAR, _BAR_END = 345, 560
_MARKS = {Standing.READY: "✓", Standing.NOT_READY: "✗"}


def render_picture(plan: Plan, report: Report, palette: Palette = LIGHT) -> bytes:
    """The picture, a PNG of 1200 by 630 pixels.

    Args:
        plan: what was decided.
        report: what came of it.
        palette: its colours.
    """
    from matplotlib.figure import Figure

    # The font that comes with matplotlib: others differ by machine.
    with drawing_style({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI, facecolor=palette.card)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(0, HEIGHT)
        below = _head(axes, plan, report, palette)
        if rows := main_rows(plan, report):
            _table(axes, report, rows, below, palette)
        _foot(axes, report, palette)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def _head(axes: Axes, plan: Plan, report: Report, palette: Palette) -> float:
    """Name, verdict and the result in a sentence; where the next thing may stand."""
    status = report.verdict.status
    colour = {Standing.READY: palette.good, Standing.NOT_READY: palette.bad}.get(status, palette.muted)
    name = words.clipped(words.printable(plan.model.hub or plan.model.origin), 48)
    title = axes.text(_LEFT, _TOP, name, size=26, weight="bold", color=palette.ink, va="center")
    title.set_fontsize(26 * min(1.0, _TITLE / max(1.0, title.get_window_extent().width)))
    verdict = f"{_MARKS.get(status, '?')} {words.standing(status)}"
    chip = {"boxstyle": "round,pad=0.45", "facecolor": colour, "edgecolor": "none"}
    axes.text(_RIGHT - 8, _TOP, verdict, size=18, weight="bold", color=palette.card, va="center", ha="right", bbox=chip)
    made = f"{scheme(plan)} in ONNX, for {plan.recipe.profile.device}"
    axes.text(_LEFT, _TOP - 42, made, size=15.5, color=palette.muted, va="center")
    place = _TOP - 94
    for line in textwrap.wrap(words.printable(report.verdict.summary), 80)[:4]:
        axes.text(_LEFT, place, line, size=17, color=palette.ink, va="center")
        place -= 32
    return place - 18


def _table(axes: Axes, report: Report, rows: Sequence[Rung], below: float, palette: Palette) -> None:
    """A row for each, its loss as a bar: of perplexity over the source's, as far as quantizing everywhere, at most."""
    axes.text(_BAR, below, "loss", size=13, color=palette.muted, va="center")
    for end, said in _COLUMNS:
        axes.text(end, below, said, size=13, color=palette.muted, va="center", ha="right")
    losses = [max(0.0, words.over_fp32(report, rung) or 0.0) for rung in rows]
    step = min(54.0, (below - 76) / (len(rows) + 0.4))
    for place, (rung, loss) in enumerate(zip(rows, losses, strict=True), 1):
        y = below - step * (place - 0.1)
        ours = words.stress(rung.id) == "ours"
        colour = palette.good if ours else palette.bad if rung.id.kind is RowKind.EVERYWHERE else palette.muted
        style: dict[str, Any] = {
            "size": 16.5,
            "color": palette.ink,
            "va": "center",
            "weight": "bold" if ours else "normal",
        }
        axes.plot([_LEFT, _RIGHT], [y + step / 2] * 2, color=palette.line, linewidth=1)
        axes.text(_LEFT, y, words.rung_name(rung), **style)
        axes.plot([_BAR, _BAR_END], [y, y], color=palette.line, linewidth=2)
        reach = _BAR + (_BAR_END - _BAR) * (loss / max(losses) if max(losses) else 0.0)
        axes.plot([_BAR, reach], [y, y], color=colour, linewidth=9, solid_capstyle="butt")
        for (end, _), said in zip(_COLUMNS, _figures(report, rung), strict=True):
            axes.text(end, y, said, ha="right", **style)


def _figures(report: Report, rung: Rung) -> Iterator[str]:
    yield words.number(rung.perplexity, 4)
    yield words.NOTHING if rung.id == FP32 else words.percent(words.over_fp32(report, rung))
    yield words.NOTHING if rung.id == FP32 else words.number(rung.kl)
    yield words.megabytes(rung.bytes)


def _foot(axes: Axes, report: Report, palette: Palette) -> None:
    """What it was measured on, how fast where that was measured, and by what it was made."""
    text = report.text
    told = []
    if text is not None:
        named = words.clipped(words.printable(text.origin) or "a text", 40)
        told.append(f"all rows on the same {text.tokens:,} tokens of {named}")
    for name, rows in report.speed.charts() if report.speed is not None else ():
        told += [f"{name} {times:.2f}×" for row, times, _ in rows if row.id.kind is RowKind.SPIKE_AWARE][:1]
    axes.text(_LEFT, 34, words.clipped("; ".join(told), 96), size=13, color=palette.muted, va="center")
    axes.text(_RIGHT, 34, f"spq-graph {__version__}", size=13, color=palette.muted, va="center", ha="right")
