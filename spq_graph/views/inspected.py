"""Inspections and differences as tables that fit 80 columns. Names are set as text, never as markup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from spq_graph.documents.findings import (
    ComparedRung,
    Difference,
    InspectedSite,
    Inspection,
    Pair,
    SeenProfile,
    SeenStretch,
    known,
)
from spq_graph.documents.plan import Evidence
from spq_graph.terms.precision import Precision
from spq_graph.views import cells, words
from spq_graph.views.outlying import show_outliers

_CHANNELS_SHOWN = 6
_BARS = "▁▂▃▄▅▆▇█"
_SPIKES = 12


def show_inspection(found: Inspection, console: Console, *, why: bool = False, unmatched: bool = False) -> None:
    """Print an inspection.

    Args:
        found: what `inspect` returned.
        console: where to.
        why: reason and evidence of every site in full, instead of the table.
        unmatched: products that are no sites and why, instead of the table.
    """
    console.print(_summary(found), highlight=False)
    if unmatched:
        _show_unmatched(found, console)
    elif why:
        for site in found.sites:
            console.print(Padding(_why(site, found.profiles.get(site.key)), (1, 0, 0, 0)))
    elif found.outliers is None or found.measured is not None:
        console.print(_sites(found.sites))
        if any(site.evidence.ratio is not None for site in found.sites):
            console.print(_spikes(found.sites))
        if found.unmatched:
            console.print(f"{len(found.unmatched)} products are no sites: --unmatched says why")
    if found.outliers is not None:
        show_outliers(found.outliers, console)


def _summary(found: Inspection) -> Text:
    graph, sites = found.graph, found.sites
    kinds = Counter(site.precision for site in sites)
    text = Text(words.printable(found.path), "bold", overflow="fold")
    counts = ", ".join(f"{count} {words.printable(name)}" for name, count in kinds.most_common())
    text.append(f": {_count(found.glu_blocks, 'GLU block')}, {_count(len(sites), 'site')}", "not bold")
    text.append(f" ({counts})" if counts else "", "not bold")
    told = [f"opset {graph.opset}", words.printable(graph.producer), words.printable(f"plan {graph.plan}"[:31]) + "…"]
    wanted = [True, bool(graph.producer), bool(graph.plan)]
    text.append("\n" + ", ".join(part for part, shown in zip(told, wanted, strict=True) if shown), "not bold dim")
    if graph.no_logits:
        text.append(f"\n{words.printable(graph.no_logits)}", "not bold")
    if found.measured is not None:
        origin = words.printable(found.measured.origin)
        text.append(f"\nmeasured on {found.measured.tokens:,} tokens of {origin}", "not bold")
        text.append(f"\n! {words.printable(found.measured.remark)}" if found.measured.remark else "", "not bold yellow")
    if found.note is not None:
        text.append(f"\n{words.printable(found.note)}", "not bold yellow")
    return text


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _show_unmatched(found: Inspection, console: Console) -> None:
    for entry in found.unmatched:
        line = Text.assemble((words.printable(entry.node), "bold"), ": ", words.printable(entry.reason))
        console.print(line, highlight=False, soft_wrap=True)
    if not found.unmatched:
        console.print("nothing was left unmatched")


def _sites(sites: Sequence[InspectedSite]) -> Table:
    table = cells.table("site", "role", "K x N", "as", "reason", "ratio")
    for site in sites:
        table.add_row(
            cells.name(site.key),
            site.role.value,
            "x".join(map(str, site.shape)),
            _precision(site.precision),
            cells.reason(site.reason),
            words.number(site.evidence.ratio),
        )
    return table


def _spikes(sites: Sequence[InspectedSite]) -> Table:
    highest = sorted(sites, key=lambda s: -(s.evidence.ratio or 0.0))[:_SPIKES]
    return cells.spikes("spikes", [(s.key, s.evidence, (words.number(s.evidence.kl),)) for s in highest], ("KL",))


def _why(site: InspectedSite, profile: SeenProfile | None) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("site", Text(words.printable(site.key), "bold"))
    if site.node != site.key:
        table.add_row("node", Text(words.printable(site.node)))
    table.add_row("role", f"{site.role.value}, {site.shape[0]} x {site.shape[1]}")
    table.add_row("precision", _precision(site.precision))
    prose = words.reason_words(site.reason, site.evidence.note) if site.reason else "no plan is recorded"
    told = Text.assemble(cells.reason(site.reason), ": ", prose) if site.reason else Text(prose)
    table.add_row("reason", told)
    _add_evidence(table, "evidence", site.evidence)
    if site.measured is not None and site.measured != site.evidence:
        _add_evidence(table, "measured now", site.measured)
    if profile is not None:
        table.add_row("by position", _bars(profile.positions))
        for peak in profile.tokens:
            word = words.clipped(words.token_words(peak.token, peak.text), 30)
            table.add_row("", Text(f"{words.number(peak.max)} on {word} at {peak.position}"))
    return table


def _add_evidence(table: Table, title: str, evidence: Evidence) -> None:
    token = words.token(evidence)
    shown = {name: str(value) for name, value in known(evidence).items() if name not in ("note", "token_text")}
    for number, (name, value) in enumerate(shown.items()):
        text = token if name == "token" else words.printable(value)
        table.add_row("" if number else title, Text(f"{name}: {text}"))


def _bars(positions: Sequence[SeenStretch]) -> Text:
    """Largest token maxima along the sequence, as bars on a logarithmic scale."""
    from math import log

    values = [log(max(entry.max, 1e-30)) for entry in positions]
    low, high = min(values), max(values)
    steps = [round((value - low) / (high - low or 1.0) * (len(_BARS) - 1)) for value in values]
    text = Text("0 ", "dim").append("".join(_BARS[step] for step in steps), "red")
    return text.append(f" {positions[-1].last}", "dim")


def show_difference(found: Difference, console: Console) -> None:
    """Print what `compare` found."""
    if found.same_model is False:
        console.print("note: the plans are for different models")
    if found.bytes is not None:
        size = f"size {words.megabytes(found.bytes.a)} MB -> {words.megabytes(found.bytes.b)} MB"
        console.print(size, highlight=False)
    for title, pairs in (("recipe", found.recipe), ("operators", found.operators)):
        for key, pair in pairs.items():
            told = f"{words.printable(key)}: {_shown(pair.a)} -> {_shown(pair.b)}"
            console.print(Text.assemble((f"{title} ", "dim"), told), highlight=False, soft_wrap=True)
    if found.prefix is not None:
        told = f"{_tokens(found.prefix.a)} -> {_tokens(found.prefix.b)}"
        console.print(Text.assemble(("prefix ", "dim"), told), highlight=False, soft_wrap=True)
    _show_treatments("outlier branch", found.branches, _channels, console)
    _show_treatments("smoothed", found.factors, _exponents, console)
    if found.ladder:
        console.print(_ladder(found.ladder))
    if found.changed:
        table = cells.table("site", "A", "", "B", "", "ratio")
        for key, decided in found.changed.items():
            a, b = decided.a, decided.b
            sides = (_precision(a.precision), cells.reason(a.reason), _precision(b.precision), cells.reason(b.reason))
            table.add_row(cells.name(key), *sides, words.number(a.ratio if a.ratio is not None else b.ratio))
        console.print(table)
    for side, keys in (("A", found.only_a), ("B", found.only_b)):
        for key in keys:
            console.print(cells.name(key).append(f": only in {side}"), highlight=False, soft_wrap=True)
    treated = found.prefix or found.branches or found.factors
    if not (found.changed or treated or found.only_a or found.only_b):
        console.print("the plans decide the same")


def _show_treatments(
    title: str, found: Mapping[str, Pair[Sequence[int]]], shown: Callable[[Sequence[int]], str], console: Console
) -> None:
    for value, pair in found.items():
        told = f"{words.printable(value)}: {shown(pair.a)} -> {shown(pair.b)}"
        console.print(Text.assemble((f"{title} ", "dim"), told), highlight=False, soft_wrap=True)


def _ladder(rungs: Sequence[ComparedRung]) -> Table:
    table = cells.table("perplexity", "bits", "A", "B", "change")
    for rung in rungs:
        a, b = rung.perplexity.a, rung.perplexity.b
        change = words.percent(b / a - 1) if a else words.NOTHING
        name, bits = Text(words.rung_name(rung)), str(rung.bits or words.NOTHING)
        table.add_row(name, bits, words.number(a, 4), words.number(b, 4), change)
    return table


def _tokens(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens)) or "none"


def _exponents(exponents: Sequence[int]) -> str:
    """Between which powers of two factors lie."""
    return f"2^{min(exponents)} to 2^{max(exponents)}" if exponents else "none"


def _channels(channels: Sequence[int]) -> str:
    """Of an outlier branch, in words."""
    if not channels:
        return "none"
    said = ", ".join(map(str, channels[:_CHANNELS_SHOWN])) + (", …" if len(channels) > _CHANNELS_SHOWN else "")
    return f"{len(channels)} channels ({said})"


def _shown(value: object) -> str:
    return words.NOTHING if value is None else words.printable(str(value))


def _precision(name: str) -> Text:
    integer = name in {p.value for p in Precision if p.bits is not None}
    return Text(words.printable(name), "" if integer else "cyan")
