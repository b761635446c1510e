"""Loss against speed as one picture, a panel for each thing that was timed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.published.front import Point, front
from spq_graph.views.charts.svg import PAGE, drawing_style, for_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, GAP = 400, 400, 46  # px of a panel, and between two
NAME, LETTER, DOT = 13, 6.4, 3.5  # px: a name's height, a bold letter's width on average, and a dot's radius
_LEFT, _BOTTOM, _TOP = 62, 52, 40
# The colours of the report's page, light and dark: an image on a page cannot read those of the page.
_STYLE = """<style>
:root { --ink: #16191f; --muted: #5b6472; --line: #e2e5ea; --card: #ffffff; --good: #0b7a57 }
@media (prefers-color-scheme: dark) {
:root { --ink: #e8ebf0; --muted: #9aa4b2; --line: #2a303a; --card: #171b21; --good: #43c794 }
}
svg { background: var(--card); font-family: system-ui, sans-serif }
</style>"""


def picture(by_measure: Mapping[str, Sequence[Point]], ours: Sequence[str]) -> str:
    """An SVG file: KL downwards on a logarithmic axis, speed to the right, so that the best are above on the right.

    Args:
        by_measure: the quantized models, by what was timed; a panel each.
        ours: keys of those that are drawn in a colour of their own.
    """
    from matplotlib.figure import Figure

    width = len(by_measure) * (WIDTH + GAP) + _LEFT
    height = HEIGHT + _BOTTOM + _TOP
    losses = [point.loss for some in by_measure.values() for point in some]
    with drawing_style():
        figure = Figure(figsize=(width / 72, height / 72))
        for number, (measure, some) in enumerate(by_measure.items()):
            left = _LEFT + number * (WIDTH + GAP)
            axes = figure.add_axes((left / width, _BOTTOM / height, WIDTH / width, HEIGHT / height))
            _scales(axes, measure, some, losses)
            _draw(axes, some, ours)
            axes.tick_params(labelleft=number == 0)
            if number == 0:
                axes.set_ylabel("KL against FP32, nats a token (less is better)", color=PAGE.muted)
    svg = for_page(figure, "published-")
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return re.sub(r"<svg ([^>]*)>", rf"<svg {space} \1>\n{_STYLE}", svg, count=1) + "\n"


def write(path: Path, by_measure: Mapping[str, Sequence[Point]], ours: Sequence[str]) -> None:
    """Draw it into a file."""
    path.write_text(picture(by_measure, ours), encoding="utf-8")


def beside(dots: Sequence[tuple[float, float]], widths: Sequence[float], end: float) -> list[tuple[float, float, bool]]:
    """Where names stand: beside their dots, and where that is taken as near as there is room, one after the other.

    Args:
        dots: their middles, px.
        widths: of the names, px.
        end: where there is no more room to the right, px.

    Returns:
        By name: the middle of the edge that faces its dot, px, and whether that is the left one.
    """
    taken = [(x - DOT, x + DOT, y - DOT, y + DOT) for x, y in dots]
    found: list[tuple[float, float, bool]] = []
    for (x, y), width in zip(dots, widths, strict=True):
        steps = [number * NAME / 2 * side for number in range(8) for side in ((1, -1) if number else (1,))]
        places = [(y + step, right) for step in steps for right in (x < end / 2, x >= end / 2)]
        boxes = [_box(x, at, width, right) for at, right in places]
        free = [
            index
            for index, box in enumerate(boxes)
            if box[0] >= 0 and box[1] <= end and not any(_meet(box, other) for other in taken)
        ]
        chosen = free[0] if free else 0
        taken.append(boxes[chosen])
        at, right = places[chosen]
        found.append((x + (DOT + 3 if right else -DOT - 3), at, right))
    return found


def _box(x: float, y: float, width: float, right: bool) -> tuple[float, float, float, float]:
    near, far = DOT + 1, DOT + 3 + width
    return (x + near, x + far, y - NAME / 2, y + NAME / 2) if right else (x - far, x - near, y - NAME / 2, y + NAME / 2)


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _scales(axes: Axes, measure: str, some: Sequence[Point], losses: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(10.0 ** (ceil(4 * log10(max(losses))) / 4 + 0.1), 10.0 ** (floor(4 * log10(min(losses))) / 4 - 0.1))
    fastest = max(1.0, *(point.speed for point in some))
    axes.set_xlim(0, 1.06 * fastest)
    axes.set_title(measure, color=PAGE.ink, loc="left", weight="bold")
    axes.set_xlabel("times the speed of FP32 (more is better)", color=PAGE.muted)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(color=PAGE.line, linewidth=1, zorder=0)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=PAGE.muted)
    axes.set_frame_on(False)
    axes.axvline(1, color=PAGE.muted, linewidth=1, linestyle=(0, (3, 3)))


def _draw(axes: Axes, some: Sequence[Point], ours: Sequence[str]) -> None:
    """Dots, filled on the front and hollow behind it; a line through the front; each name beside its dot."""
    best = front(some)
    axes.plot([p.speed for p in best], [p.loss for p in best], color=PAGE.muted, linewidth=1.5, zorder=1)
    pixels = axes.transData.transform([(point.speed, point.loss) for point in some]) * 72 / axes.figure.dpi
    left = axes.transAxes.transform((0, 0))[0] * 72 / axes.figure.dpi
    dots = [(float(x - left), float(y)) for x, y in pixels]
    places = beside(dots, [LETTER * len(point.label) for point in some], WIDTH + GAP - NAME)
    for point, (x, y), (name_x, name_y, right) in zip(some, dots, places, strict=True):
        colour = PAGE.good if point.key in ours else PAGE.ink
        filled = colour if point in best else PAGE.card
        axes.plot(point.speed, point.loss, "o", color=colour, markersize=2 * DOT, markerfacecolor=filled, zorder=3)
        axes.annotate(
            point.label,
            (point.speed, point.loss),
            xytext=(name_x - x, name_y - y),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            color=colour,
            size=10,
            weight="bold" if point.key in ours or point in best else "normal",
        )
