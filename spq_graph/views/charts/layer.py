"""A decoder layer's boxes and arrows, as a figure of matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from spq_graph.documents.drawing import Box
from spq_graph.views import words
from spq_graph.views.charts.svg import LIGHT, Palette, drawing_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMN, _ROW, _MARGIN = 122, 68, 10  # px at natural size
_NARROW, _WIDE = 117, 222  # px: a box beside others, and one alone, which leaves room for lines on both sides
_LANE = 8
_LINE, _LETTER = 14, 5.7  # px, of small text in the widest font that a reader may have
_FEWEST_COLUMNS = 3
_Placed = tuple[tuple[float, float], tuple[float, float]]  # a box: its centre, and its width and height


def layer_figure(boxes: Sequence[Box], palette: Palette = LIGHT) -> Figure:
    """Draw boxes from top to bottom, each below all that it reads.

    Args:
        boxes: in topological order.
        palette: its colours.
    """
    from matplotlib.figure import Figure

    rows = _rows(boxes)
    # An odd number: then lines run down beside a box that stands alone in the middle.
    columns = max(_FEWEST_COLUMNS, *map(len, rows)) | 1
    centres = _centres(boxes, rows, columns)
    depth = {index: row for row, members in enumerate(rows) for index in members}
    middle = _MARGIN + columns * _COLUMN / 2
    far = [
        i
        for i, x in centres.items()
        if x == middle and any(i in b.reads and depth[k] - depth[i] > 1 for k, b in enumerate(boxes))
    ]
    # What goes past other rows from the middle gets a lane of its own along the right margin.
    edge = columns * _COLUMN + 2 * _MARGIN
    lanes = {index: edge + number * _LANE for number, index in enumerate(sorted(far, reverse=True))}
    width, height = edge + _LANE * len(lanes), len(rows) * _ROW
    with drawing_style():
        figure = Figure(figsize=(width / 72, height / 72))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        place = {index: (centres[index], depth[index] * _ROW + _ROW / 2) for index in depth}
        sizes = {i: (_NARROW if len(rows[depth[i]]) > 1 else _WIDE, _height(boxes[i])) for i in depth}
        for index, box in enumerate(boxes):
            for above in box.reads:
                ends = (place[above], sizes[above]), (place[index], sizes[index])
                near = depth[index] - depth[above] == 1
                _arrow(axes, *ends, None if near else lanes.get(above, place[above][0]), palette)
        for index, box in enumerate(boxes):
            _box(axes, box, place[index], sizes[index], palette)
    return figure


def _rows(boxes: Sequence[Box]) -> list[list[int]]:
    """The boxes by the length of the longest way to them."""
    depth: list[int] = []
    for box in boxes:
        depth.append(max((depth[above] + 1 for above in box.reads), default=0))
    return [[i for i, d in enumerate(depth) if d == row] for row in range(max(depth) + 1)]


def _centres(boxes: Sequence[Box], rows: Sequence[Sequence[int]], columns: int) -> dict[int, float]:
    """Where boxes stand across: below what they read, as far as a row has room."""
    middles = [_MARGIN + (column + 0.5) * _COLUMN for column in range(columns)]
    centre: dict[int, float] = {}
    for row in rows:
        wish = {i: _mean([centre[above] for above in boxes[i].reads], sum(middles) / columns) for i in row}
        order = sorted(row, key=lambda i: (wish[i], i))
        if len(row) == 1:
            centre[row[0]] = sum(middles) / columns
            continue
        if len(row) == 2 and len(set(wish.values())) == 1:
            chosen: Sequence[float] = [middles[0], middles[-1]]
        elif columns > 2 * _FEWEST_COLUMNS:  # too many ways to try
            chosen = [middles[k * columns // len(row)] for k in range(len(row))]
        else:
            chosen = min(
                combinations(middles, len(row)),
                key=lambda places: sum(abs(wish[i] - x) for i, x in zip(order, places, strict=True)),
            )
        centre |= dict(zip(order, chosen, strict=True))
    return centre


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _height(box: Box) -> int:
    return 28 + _LINE * len(box.detail.splitlines())


def _arrow(axes: Axes, start: _Placed, end: _Placed, lane: float | None, palette: Palette) -> None:
    """Down to the next row; past other rows along a lane, which is right below the start or in the margin."""
    ((x0, y0), (wide0, high0)), ((x1, y1), (wide1, high1)) = start, end
    tip: dict[str, Any] = {
        "arrowstyle": "-|>",
        "color": palette.muted,
        "lw": 1.2,
        "shrinkA": 0,
        "shrinkB": 0,
        "mutation_scale": 9,
    }
    line: dict[str, Any] = {"color": palette.muted, "linewidth": 1.2, "solid_joinstyle": "round", "zorder": 1}
    if lane is None:
        top, bottom = y0 + high0 / 2, y1 - high1 / 2
        knee = bottom - 9
        axes.plot([x0, x0, x1, x1], [top, knee, knee, knee + 2], **line)
        axes.annotate("", (x1, bottom), (x1, knee), arrowprops=tip)
        return
    side = -1 if lane < x1 else 1
    if lane == x0:
        axes.plot([x0, x0, x0 - 2 * side], [y0 + high0 / 2, y1, y1], **line)
    else:
        axes.plot([x0 + wide0 / 2, lane, lane, lane - 2], [y0, y0, y1, y1], **line)
    axes.annotate("", (x1 + side * wide1 / 2, y1), (lane, y1), arrowprops=tip)


def _box(axes: Axes, box: Box, centre: tuple[float, float], size: tuple[float, float], palette: Palette) -> None:
    from matplotlib.patches import FancyBboxPatch

    fill, edge = {
        "stream": (palette.card, palette.line),
        "site": (palette.card, palette.ink),
        "kept": (palette.high_soft, palette.high),
        "quantizer": (palette.int_soft, palette.int),
        "other": (palette.card, palette.line),
    }[box.kind]
    (x, y), (wide, high) = centre, size
    axes.add_patch(
        FancyBboxPatch(
            (x - wide / 2, y - high / 2),
            wide,
            high,
            boxstyle="round,pad=0,rounding_size=6",
            facecolor=fill,
            edgecolor=edge,
            linewidth=1.4,
            zorder=3,
        )
    )
    weight = "normal" if box.kind in ("other", "stream", "quantizer") else "bold"
    lines = box.detail.splitlines()
    first = y - _LINE * len(lines) / 2
    title = words.clipped(words.printable(box.title), wide / _LETTER / 1.1)
    axes.text(x, first, title, ha="center", va="center", color=palette.ink, weight=weight, zorder=4)
    for number, text in enumerate(lines):
        place = first + 16 + number * _LINE
        axes.text(
            x,
            place,
            words.clipped(words.printable(text), wide / _LETTER),
            ha="center",
            va="center",
            color=palette.muted,
            fontsize=10,
            zorder=4,
        )
