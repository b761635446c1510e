"""Plan, report and ranges as one page that needs no network, and JavaScript for nothing but convenience.

Names come from models and tokens from tokenizers, so both are hostile: the template escapes everything, and a content
security policy forbids the page to load anything, or to run any script but the one that belongs to it.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from spq_graph.documents.drawing import Box
from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.report import Report, Rung
from spq_graph.documents.token_profile import TokenProfile
from spq_graph.terms.rows import EVERYWHERE, FP32, SPIKE_AWARE
from spq_graph.views import words
from spq_graph.views.card import recipe_file
from spq_graph.views.charts.ladder import ladder_changes, ladder_figure
from spq_graph.views.charts.layer import layer_figure
from spq_graph.views.charts.speed import speed_figure
from spq_graph.views.charts.spikes import HEAT_STEPS, STEPS_A_DECADE, heat, spike_map
from spq_graph.views.charts.svg import PAGE, for_page
from spq_graph.views.charts.tokens import profile_figure
from spq_graph.views.charts.tradeoff import sizes, speeds, tradeoff_figure
from spq_graph.views.headline import beside_first, headline

_TEMPLATES = Path(__file__).with_name("templates")
PROFILES = 12


def render(plan: Plan, report: Report, profiles: Sequence[ShownProfile] = ()) -> str:
    """The report page.

    Args:
        plan: what was decided.
        report: what came of it.
        profiles: what `shown_profiles` makes of the ranges.

    Returns:
        A complete HTML document: inline style, script and charts, light and dark, the same bytes for the same inputs.
    """
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    usual = _usual_kernels(plan, report)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            plan=plan,
            report=report,
            standing=words.standing(report.verdict.status),
            words=words,
            headline=headline(plan, report),
            tiles=_tiles(plan, report),
            ladder=_ladder(report),
            fp32=FP32,
            charts=list(_charts(report)),
            speeds=list(_speeds(report)),
            tradeoffs=list(_tradeoffs(plan, report)),
            spikes=spike_map(plan),
            number_of={site.key: index for index, site in enumerate(plan.sites)},
            profiles=list(profiles),
            profile_of={key: index for index, shown in enumerate(profiles) for key in shown.keys},
            drawings=list(_drawings(report)),
            kept=sorted(plan.kept, key=lambda site: -(site.evidence.ratio or 0.0)),
            precisions=words.precisions(plan),
            usual=usual,
            exceptions={
                s.precision.value
                for s in plan.sites
                if report.kernels.get(s.key) not in (None, usual.get(s.precision.value))
            },
            choices=_choices(plan),
            placed=_placed(report),
            recipe=_recipe(plan.recipe),
            recipe_file=recipe_file(plan.recipe),
            heat=heat,
            legend=[(step, words.number(10 ** (step / STEPS_A_DECADE), 2)) for step in range(HEAT_STEPS)],
            script=Markup(script),  # noqa: S704 - a file of this package
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


@cache
def _environment() -> Environment:
    """Where templates come from, once: what they are compiled to is kept there."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "text": words.printable,
        "unbroken": _unbroken,
        "number": words.number,
        "percent": words.percent,
        "error": words.error,
        "mb": words.megabytes,
        "duration": words.duration,
    }
    return environment


def _unbroken(text: str) -> Markup:
    """A sentence whose options are not parted at their hyphens."""
    found = re.sub(r"(?<!\S)--[a-z-]+", r'<span class="whole">\g<0></span>', str(escape(words.printable(text))))
    return Markup(found)  # noqa: S704 - escaped above


@dataclass(frozen=True, slots=True)
class ShownProfile:
    """The profile of one activation, and of the sites that read it.

    Attributes:
        site: the first of them.
        keys: of all of them.
        chart: an svg element.
        leaders: the tokens with the largest maxima, as (token, value, position).
    """

    site: SitePlan
    keys: tuple[str, ...]
    chart: Markup
    leaders: list[tuple[str, float, int]]


def shown_profiles(plan: Plan, ranges: Ranges, tokens: Mapping[int, str]) -> list[ShownProfile]:
    """Profiles of the kept sites, then of those with the highest ratio, each activation once.

    Args:
        plan: what was decided.
        ranges: what calibration saw.
        tokens: texts of tokens, by id.
    """
    kept = {site.key for site in plan.kept}
    ordered = sorted(plan.sites, key=lambda s: (s.key not in kept, -(s.evidence.ratio or 0.0), s.key))
    readers: dict[str, list[SitePlan]] = {}
    for site in ordered:
        readers.setdefault(site.input, []).append(site)
    shown = [(sites, ranges.values[name]) for name, sites in readers.items() if name in ranges.values]
    found: list[ShownProfile] = []
    for index, (sites, seen) in enumerate([(s, v) for s, v in shown if v.profile is not None][:PROFILES]):
        profile: TokenProfile | None = seen.profile
        if profile is None:
            continue
        chart = for_page(profile_figure(profile, seen.median, PAGE), f"p{index}-")
        leaders = [
            (words.token_words(peak.token, tokens.get(peak.token)), peak.value, peak.position)
            for peak in profile.leaders
        ]
        keys = tuple(site.key for site in sites)
        found.append(ShownProfile(sites[0], keys, Markup(chart), leaders))  # noqa: S704 - numbers, no names
    return found


def _drawings(report: Report) -> Iterator[tuple[str, Markup, list[Box]]]:
    if report.layer is None:
        return
    for name, boxes in (("before", report.layer.before), ("after", report.layer.after)):
        if boxes:
            # Safe as markup: the drawing library escapes its text.
            yield name, Markup(for_page(layer_figure(boxes, PAGE), f"{name}-")), boxes  # noqa: S704


def _tiles(plan: Plan, report: Report) -> list[tuple[str, str, str]]:
    """The figures to see first: (what, value, remark)."""
    bits, tiles = plan.recipe.bits, []
    aware, everywhere = report.rung(SPIKE_AWARE, bits), report.rung(EVERYWHERE, bits)
    if aware:
        remark = f"everywhere {words.percent(words.over_fp32(report, everywhere))}" if everywhere else "vs FP32"
        tiles.append(("perplexity over FP32", words.percent(words.over_fp32(report, aware)), remark))
    back = words.won_back(report, bits)
    if back is not None:
        tiles.append(("of the loss won back", f"{100 * back:.0f} %", f"at {bits} bits"))
    kept, by_token = words.kept_and_scaled(plan)
    tiles.append(("kept sites", f"{kept} of {len(plan.counted)}", "in high precision"))
    if by_token:
        tiles.append(("by token", f"{by_token} of {len(plan.counted)}", "sites, in integers"))
    if plan.prefix is not None:
        tiles.append(("prefix", str(len(plan.prefix.tokens)), "tokens in front of every sequence"))
    if plan.peels:
        most = max(len(peel.channels) for peel in plan.peels.values())
        tiles.append(("outlier branches", str(len(plan.peels)), f"of up to {most} channels"))
    if plan.scales:
        tiles.append(("smoothed", str(len(plan.scales)), "activations, at no cost"))
    share = report.bytes / report.source_bytes if report.source_bytes else 1.0
    size = f"{100 * share:.0f} % of {words.megabytes(report.source_bytes)} MB"
    tiles.append(("size", f"{words.megabytes(report.bytes)} MB", size))
    tiles.append(_speed_tile(report))
    planned = f"{words.integers_planned(plan)} planned"
    if report.target is not None and not report.target.executed_here:
        tiles.append(("integer kernels", "–", f"not executed here; {planned}"))
    else:
        tiles.append(("integer kernels", str(words.integer_kernels(report.executed)), planned))
    return tiles


def _speed_tile(report: Report) -> tuple[str, str, str]:
    """How many times faster the artifact is than what it was timed beside, or how to know."""
    if (timed := beside_first(report.speed)) is None:
        return "speed", "not timed", "spq-graph bench OUT --against SOURCE --report"
    row, speed = timed
    length, prefill = next(iter(row.prefill.items()))
    decode = row.decode.times if row.decode is not None else None
    beside = f"of {words.timed_name(speed.rows[0])}, a prompt of {length} tokens"
    return "speed", f"{prefill.times:.2f}×", beside + (f"; {decode:.2f}× in decoding" if decode is not None else "")


def _ladder(report: Report) -> list[tuple[int | None, list[Rung]]]:
    """The rungs, in order, in groups of equal bits."""
    return [(bits, list(rungs)) for bits, rungs in groupby(report.ladder, key=lambda rung: rung.bits)]


def _charts(report: Report) -> Iterator[tuple[int, Markup]]:
    """One chart for each number of bits, all on one scale."""
    changes = ladder_changes(report)
    every = [change for rungs in changes.values() for _, change in rungs]
    for bits, rungs in changes.items():
        # Safe as markup: the drawing library escapes its text, and no name but those of rungs goes into it.
        yield bits, Markup(for_page(ladder_figure(rungs, every, PAGE), f"b{bits}-"))  # noqa: S704


def _speeds(report: Report) -> Iterator[tuple[str, Markup]]:
    """A chart for each measurement of `bench`."""
    for index, (name, rows) in enumerate(report.speed.charts() if report.speed is not None else ()):
        yield name, Markup(for_page(speed_figure(rows, PAGE), f"v{index}-"))  # noqa: S704 - the library escapes text


def _tradeoffs(plan: Plan, report: Report) -> Iterator[tuple[str, Markup]]:
    """Loss against size and against speed, each where there are rows to choose between."""
    bits, use = plan.recipe.bits, plan.recipe.use
    asked = {"balanced": "prompts and decoding alike", "prefill": "prompts", "decode": "decoding"}[use]
    for index, (name, points) in enumerate(
        (("size, in MB", sizes(report, bits)), (f"speed, {asked}, in times that of FP32", speeds(report, bits, use)))
    ):
        if len(points) > 1:
            yield name, Markup(for_page(tradeoff_figure(points, PAGE), f"t{index}-"))  # noqa: S704 - names of rungs


def _choices(plan: Plan) -> dict[str, list[str]]:
    """What the table of sites can be filtered by."""
    return {
        "role": sorted({site.role.value for site in plan.sites}),
        "precision": sorted({site.precision.value for site in plan.sites}),
        "reason": sorted({site.reason.value.replace("_", " ") for site in plan.sites}),
    }


def _usual_kernels(plan: Plan, report: Report) -> dict[str, str]:
    """What most sites of a precision ran as, by precision."""
    counts: dict[str, Counter[str]] = {}
    for site in plan.sites:
        if site.key in report.kernels:
            counts.setdefault(site.precision.value, Counter())[report.kernels[site.key]] += 1
    return {precision: ops.most_common(1)[0][0] for precision, ops in counts.items()}


def _placed(report: Report) -> list[tuple[str, int, list[tuple[str, int]]]]:
    """Providers with their nodes and operators, the most frequent first; older reports do not tell them apart."""
    placed = report.placed or ({next(iter(report.providers)): report.executed} if len(report.providers) == 1 else {})
    if not placed:
        placed = {"": report.executed}
    ordered = [(name, sorted(ops.items(), key=lambda item: (-item[1], item[0]))) for name, ops in placed.items()]
    return [(name, sum(count for _, count in ops), ops) for name, ops in ordered]


def _recipe(recipe: Recipe) -> Iterable[tuple[str, str, bool]]:
    """The recipe's fields: (name, value, whether it differs from the default)."""
    for name, field in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        shown = recipe.model_dump(mode="json")[name]
        yield name, words.NOTHING if shown in (None, []) else str(shown), value != field.default
