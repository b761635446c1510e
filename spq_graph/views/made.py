"""What was made, a plan and its report, as rich renderables that fit 80 columns."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.documents.report import Report
from spq_graph.documents.verdict import Standing
from spq_graph.terms.rows import FP32
from spq_graph.views import cells, words
from spq_graph.views.headline import headline
from spq_graph.views.remedied import remedies

_COLOURS = {Standing.READY: "green", Standing.NOT_READY: "red", Standing.NOT_MEASURED: "yellow"}
_RUNG_STYLES = {"ours": "bold green", "aside": "dim", "": ""}
_KEPT_IN_SUMMARY = 8


def ladder_table(report: Report, plan: Plan | None = None) -> Table:
    """The ladder, one rung a row, in the order of the report.

    Args:
        report: whose ladder to show.
        plan: tells how many sites there are, so that kept ones are shown as "2/56" instead of "2".
    """
    table = cells.table("", "bits", "ppl", "±", "vs FP32", "KL", "±", "top-1", "MB", "kept", "int\nkernels")
    for before, rung in zip([None, *report.ladder], report.ladder, strict=False):
        if before and before.bits != rung.bits:
            table.add_section()
        table.add_row(
            Text(words.rung_name(rung)),
            str(rung.bits or words.NOTHING),
            words.number(rung.perplexity, 4),
            words.error(rung.perplexity_stderr).removeprefix("±"),
            words.NOTHING if rung.id == FP32 else words.percent(words.over_fp32(report, rung)),
            words.number(rung.kl),
            words.error(rung.kl_stderr).removeprefix("±"),
            f"{rung.top1:.1%}",
            words.megabytes(rung.bytes),
            words.kept_share(plan, rung) if plan else str(len(rung.kept)),
            str(words.integer_kernels(rung.executed)),
            style=_RUNG_STYLES[words.stress(rung.id)],
        )
    return table


def spike_table(plan: Plan, limit: int = 12) -> Table:
    """Kept sites, then those of highest ratio, up to `limit` rows; kept sites are never left out."""
    entries = [
        (site.key, site.evidence, (site.precision.value, cells.reason(site.reason))) for site in _spiking(plan, limit)
    ]
    return cells.spikes("site", entries, ("as", "reason"), "Spikes at site inputs (max/median of token maxima)")


def summary(plan: Plan, report: Report, out: Path | None = None) -> Panel:
    """The closing summary: whether it is ready and why, what was kept and why, sizes, and where the files lie."""
    parts = [Text(words.printable(report.verdict.summary))]
    if (sentence := headline(plan, report)) != report.verdict.summary:
        parts.append(Text(sentence))
    parts += [Text(f"! {words.printable(warning)}", "yellow") for warning in report.verdict.warnings]
    parts += [Text(f"> {words.advised(advice)}", "cyan") for advice in report.verdict.advice]
    if (better := report.verdict.recommended) is not None and not better.in_out:
        parts.append(Text(f"> its recipe: {words.recipe_lines(better.recipe, '; ')}", "cyan"))
    parts += [Text(), *_kept_lines(plan)]
    parts += [Text(f"{said[0].upper()}{said[1:]}.") for said in remedies(plan)]
    parts.append(Text())
    facts = Table.grid(padding=(0, 2))
    facts.add_row("size", f"{words.megabytes(report.source_bytes)} MB -> {words.megabytes(report.bytes)} MB")
    facts.add_row("kernels", words.kernels(plan, report))
    for line in words.folded(report.folded):
        facts.add_row("", Text(line))
    for line in words.operator_sites(report):
        facts.add_row("", Text(line))
    if report.seconds:
        facts.add_row("time", words.duration(sum(report.seconds.values())))
    if out is not None:
        facts.add_row("files", Text(str(out), "bold", overflow="fold"))
        facts.add_row("report", Text(str(out / "report.html"), overflow="fold"))
    title, colour = words.standing(report.verdict.status), _COLOURS[report.verdict.status]
    style = f"bold {colour}"
    return Panel(Group(*parts, facts), title=Text(title, style), title_align="left", border_style=colour, width=80)


def _spiking(plan: Plan, limit: int) -> list[SitePlan]:
    kept = plan.kept
    chosen = {id(site) for site in kept}
    rest = [site for site in plan.sites if id(site) not in chosen and site.evidence.ratio is not None]
    rest = _by_ratio(rest)[: max(0, limit - len(kept))]
    return _by_ratio(kept) + rest


def _by_ratio(sites: list[SitePlan]) -> list[SitePlan]:
    return sorted(sites, key=lambda site: (-(site.evidence.ratio or 0.0), site.key))


def _kept_lines(plan: Plan) -> list[Text]:
    kept = _by_ratio(plan.kept)
    if not kept:
        return [Text("No site is kept in high precision.")]
    lines = [Text("Kept in high precision", "bold")]
    for site in kept[:_KEPT_IN_SUMMARY]:
        line = cells.name(site.key).append(f"  {site.precision.value}  ", "cyan")
        lines.append(line.append(f"{site.reason.value}: {words.why(site)}", "dim"))
    if len(kept) > _KEPT_IN_SUMMARY:
        lines.append(Text(f"and {len(kept) - _KEPT_IN_SUMMARY} more, see plan.json", "dim"))
    return lines
