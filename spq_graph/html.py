"""HTML: plan and report as one page that needs neither network nor JavaScript.

Names come from models and tokens from tokenizers, so both are hostile: the template escapes everything, and a content
security policy forbids the page to load or run anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from math import log10
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from spq_graph import wording
from spq_graph.chart import ladder_chart
from spq_graph.plan import Plan, Reason, SitePlan
from spq_graph.report import Report, Rung
from spq_graph.sites import Role

_TEMPLATES = Path(__file__).with_name("templates")
HEAT_STEPS = 10
_STEPS_A_DECADE = 3
_FLOW = (
    Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_QKV, Role.ATTN_O, Role.ROUTER,
    Role.GLU_GATE, Role.GLU_UP, Role.GLU_GATE_UP, Role.GLU_DOWN,
    Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_GATE_UP, Role.EXPERT_DOWN, Role.OTHER, Role.LM_HEAD,
)  # fmt: skip


def render(plan: Plan, report: Report) -> str:
    """The report page.

    Returns:
        A complete HTML document: inline style and charts, light and dark, the same bytes for the same inputs.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "text": wording.printable,
        "number": wording.number,
        "percent": wording.percent,
        "mb": wording.megabytes,
        "duration": wording.duration,
    }
    return environment.get_template("report.html.j2").render(
        plan=plan,
        report=report,
        words=wording,
        tiles=_tiles(plan, report),
        ladder=_ladder(report),
        charts=_charts(report),
        spikes=spike_map(plan),
        kept=sorted(plan.kept, key=lambda site: -(site.evidence.ratio or 0.0)),
        recipe=_recipe(plan),
        executed=sorted(report.executed.items(), key=lambda item: (-item[1], item[0])),
        details=details,
        heat=heat,
        legend=[(step, wording.number(10 ** (step / _STEPS_A_DECADE), 2)) for step in range(HEAT_STEPS)],
    )


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of the spike map: the sites of one role in one layer, the highest ratio first."""

    sites: tuple[SitePlan, ...]

    @property
    def ratio(self) -> float | None:
        """The highest ratio here, None where nothing was measured."""
        return self.sites[0].evidence.ratio

    @property
    def kept(self) -> bool:
        """Whether a site here is kept in high precision on purpose."""
        return any(site.precision.bits is None and site.reason is not Reason.DEFAULT for site in self.sites)


@dataclass(frozen=True, slots=True)
class SpikeMap:
    """Layers x roles; `outside` are the sites that belong to no layer."""

    roles: tuple[Role, ...]
    rows: tuple[tuple[int, tuple[Cell | None, ...]], ...]
    outside: tuple[SitePlan, ...]


def spike_map(plan: Plan) -> SpikeMap:
    """Arrange the sites by layer and, in the order in which data flows, by role."""
    places: dict[tuple[int, Role], list[SitePlan]] = {}
    for site in plan.sites:
        if site.layer is not None:
            places.setdefault((site.layer, site.role), []).append(site)
    present = {role for _, role in places}
    roles = tuple(role for role in _FLOW if role in present)

    def cell(layer: int, role: Role) -> Cell | None:
        sites = places.get((layer, role), [])
        return Cell(tuple(sorted(sites, key=lambda s: (-(s.evidence.ratio or 0.0), s.key)))) if sites else None

    layers = sorted({layer for layer, _ in places})
    rows = tuple((layer, tuple(cell(layer, role) for role in roles)) for layer in layers)
    return SpikeMap(roles, rows, tuple(site for site in plan.sites if site.layer is None))


def heat(ratio: float | None) -> int:
    """The colour step of a ratio: a fixed log scale from 1 to 1000, so that reports can be compared by eye."""
    if ratio is None or not ratio > 1.0:
        return 0
    return min(HEAT_STEPS - 1, int(min(log10(ratio), HEAT_STEPS) * _STEPS_A_DECADE))


def details(site: SitePlan) -> str:
    """What was measured at a site, in a line or two of plain text."""
    seen = site.evidence
    lines = [wording.printable(site.key), f"{site.precision.value}, {site.reason.value.replace('_', ' ')}"]
    if seen.max is not None:
        lines.append(f"max {wording.number(seen.max)}, median {wording.number(seen.median)}")
    if seen.token is not None or seen.token_text is not None:
        lines.append(
            f"token {wording.token(seen)} at position {wording.NOTHING if seen.position is None else seen.position}"
        )
    return "\n".join(lines)


def _tiles(plan: Plan, report: Report) -> list[tuple[str, str, str]]:
    """The figures to see first: (what, value, remark)."""
    bits, tiles = plan.recipe.bits, []
    aware, everywhere = (wording.find_rung(report, name, bits) for name in ("spike_aware", "everywhere"))
    if aware:
        remark = f"everywhere {wording.percent(wording.over_fp32(report, everywhere))}" if everywhere else "vs FP32"
        tiles.append(("perplexity over FP32", wording.percent(wording.over_fp32(report, aware)), remark))
    back = wording.won_back(report, bits)
    if back is not None:
        tiles.append(("of the loss won back", f"{100 * back:.0f} %", f"at {bits} bits"))
    tiles.append(("kept sites", f"{len(plan.kept)} of {len(plan.counted)}", "in high precision"))
    share = report.bytes / report.source_bytes if report.source_bytes else 1.0
    tiles.append(
        (
            "size",
            f"{wording.megabytes(report.bytes)} MB",
            f"{100 * share:.0f} % of {wording.megabytes(report.source_bytes)} MB",
        )
    )
    kernels = wording.integer_kernels(report.executed)
    tiles.append(("integer kernels", str(kernels), f"{len(plan.integer_sites)} planned"))
    return tiles


def _ladder(report: Report) -> list[tuple[int | None, list[Rung]]]:
    """The rungs, in order, in groups of equal bits."""
    return [(bits, list(rungs)) for bits, rungs in groupby(report.ladder, key=lambda rung: rung.bits)]


def _charts(report: Report) -> list[tuple[int, Markup]]:
    """One chart for each number of bits, all on one scale."""
    changes: dict[int, list[tuple[Rung, float]]] = {}
    for rung in report.ladder:
        change = wording.over_fp32(report, rung)
        if rung.bits is not None and change is not None:
            changes.setdefault(rung.bits, []).append((rung, change))
    every = [change for rungs in changes.values() for _, change in rungs]
    # Safe as markup: the drawing library escapes its text, and no name but those of rungs goes into it.
    return [(bits, Markup(ladder_chart(rungs, every, f"b{bits}-"))) for bits, rungs in changes.items()]  # noqa: S704


def _recipe(plan: Plan) -> Iterable[tuple[str, str, bool]]:
    """The recipe's fields: (name, value, whether it differs from the default)."""
    for name, field in type(plan.recipe).model_fields.items():
        value = getattr(plan.recipe, name)
        shown = plan.recipe.model_dump(mode="json")[name]
        yield name, wording.NOTHING if shown in (None, []) else str(shown), value != field.default
