"""What the report draws, as figures of matplotlib for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.report import Report
from spq_graph.terms.errors import UsageError
from spq_graph.views import words
from spq_graph.views.charts.ladder import ladder_changes, ladder_figure
from spq_graph.views.charts.layer import layer_figure
from spq_graph.views.charts.spikes import spike_map
from spq_graph.views.charts.svg import LIGHT, drawing_style
from spq_graph.views.charts.tokens import profile_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_ladder(report: Report, bits: int | None = None) -> Figure:
    """Perplexity over FP32, one row a rung.

    Args:
        report: whose ladder.
        bits: which of its bit widths; None for the first.

    Raises:
        UsageError: the report has no ladder of so many bits.
    """
    changes = ladder_changes(report)
    wanted = bits if bits is not None else next(iter(changes), None)
    if wanted not in changes:
        raise UsageError(
            "the report has no ladder" + (f" at {bits} bits" if bits is not None else ""),
            remedy="run `quantize` with --text FILE" + (f" --bits {bits}" if bits is not None else ""),
        )
    return ladder_figure(changes[wanted], [change for rungs in changes.values() for _, change in rungs])


def plot_spikes(plan: Plan) -> Figure:
    """The highest ratio of every layer and role as a heat map; kept sites are outlined.

    Raises:
        UsageError: no site of the plan is in a layer.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    arranged = spike_map(plan)
    if not arranged.rows:
        raise UsageError("no site of this plan is in a numbered layer", remedy="plan.to_pandas() needs no layers")
    ratios = np.array([[(c.ratio if c else None) or np.nan for c in cells] for _, cells in arranged.rows], dtype=float)
    with drawing_style():
        figure = Figure(figsize=(1.6 + 0.75 * len(arranged.roles), 1.0 + 0.3 * len(arranged.rows)), layout="tight")
        axes = figure.add_subplot()
        image = axes.imshow(ratios, cmap="YlOrRd", norm=LogNorm(1, 1000, clip=True), aspect="auto")
        axes.set_xticks(range(len(arranged.roles)), [role.value for role in arranged.roles], rotation=30, ha="right")
        axes.set_yticks(range(len(arranged.rows)), [str(layer) for layer, _ in arranged.rows])
        axes.set_ylabel("layer")
        for y, (_, cells) in enumerate(arranged.rows):
            for x, cell in enumerate(cells):
                if cell is not None and cell.kept:
                    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=LIGHT.ink, linewidth=2))
        figure.colorbar(image, label="max / median of token maxima")
    return figure


def plot_profile(ranges: Ranges, plan: Plan, key: str) -> Figure:
    """Token maxima at one site's input by position: the largest, the typical, and the median as a dotted line.

    Raises:
        UsageError: the plan has no such site, or the ranges no profile of its input.
    """
    site = next((site for site in plan.sites if site.key == key), None)
    if site is None:
        raise UsageError("the plan has no such site", where=key, remedy="plan.to_pandas() lists their keys")
    seen = ranges.values.get(site.input)
    if seen is None or seen.profile is None:
        raise UsageError(
            "the ranges hold no profile of this site's input",
            where=key,
            remedy="give the ranges beside the plan, and a site that they tell of: no embedding, no expert's, whose "
            "tokens have no order",
        )
    figure = profile_figure(seen.profile, seen.median)
    figure.suptitle(words.printable(key), fontsize=11)
    return figure


def plot_layer(report: Report, which: Literal["before", "after"] = "after") -> Figure:
    """The decoder layer that the report draws, in the source or in the artifact.

    Raises:
        UsageError: the report holds no drawing.
    """
    boxes = getattr(report.layer, which, None)
    if not boxes:
        raise UsageError(
            "the report holds no drawing of a layer",
            remedy="give the report of a `quantize` whose model has numbered layers",
        )
    return layer_figure(boxes)
