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
NAME = 15  # px that a name is high
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


def apart(places: Sequence[float], least: float) -> list[float]:
    """Places along a line, moved as little as it takes for neighbours to be `least` apart, in the order of `places`."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    groups: list[tuple[float, list[int]]] = []  # the middle of those that touch, and who they are
    for index in order:
        groups.append((places[index], [index]))
        while len(groups) > 1 and _end(groups[-2], least, 1) > _end(groups[-1], least, -1) - least:
            (middle, some), (other, more) = groups[-2:]
            both = len(some) + len(more)
            groups[-2:] = [((middle * len(some) + other * len(more)) / both, [*some, *more])]
    found = [0.0] * len(places)
    for middle, some in groups:
        for rank, index in enumerate(some):
            found[index] = middle + (rank - (len(some) - 1) / 2) * least
    return found


def _end(group: tuple[float, list[int]], least: float, side: int) -> float:
    return group[0] + side * (len(group[1]) - 1) / 2 * least


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
    middle = axes.transData.transform((axes.get_xlim()[1] / 2, 1.0))[0] * 72 / axes.figure.dpi
    rightwards = [bool(x <= middle) for x, _ in pixels]
    heights = dict[int, float]()
    for side in (True, False):
        those = [index for index, right in enumerate(rightwards) if right is side]
        heights |= dict(zip(those, apart([pixels[index][1] for index in those], NAME), strict=True))
    for index, point in enumerate(some):
        colour = PAGE.good if point.key in ours else PAGE.ink
        filled = colour if point in best else PAGE.card
        axes.plot(point.speed, point.loss, "o", color=colour, markersize=7, markerfacecolor=filled, zorder=3)
        axes.annotate(
            point.label,
            (point.speed, point.loss),
            xytext=(9 if rightwards[index] else -9, heights[index] - pixels[index][1]),
            textcoords="offset points",
            ha="left" if rightwards[index] else "right",
            va="center",
            color=colour,
            size=10,
            weight="bold" if point.key in ours or point in best else "normal",
        )
