"""How plans and reports are put into words and numbers, the same in the terminal and in HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import floor, isfinite, log10
from typing import Any, Literal

from spq_graph.documents import tables
from spq_graph.documents.findings import ComparedRung
from spq_graph.documents.json_text import json_text
from spq_graph.documents.plan import Evidence, Plan, Reason, SitePlan
from spq_graph.documents.report import OperatorRun, Report, Rung
from spq_graph.documents.results import Applied
from spq_graph.documents.speed import SpeedRow
from spq_graph.documents.treatment import Cause
from spq_graph.documents.verdict import Advice, Standing
from spq_graph.terms.kernels import FP8_KERNEL, INTEGER_KERNELS
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import EVERYWHERE, FP32, SPIKE_AWARE, RowId, RowKind, Scheme
from spq_graph.terms.site import Role

NOTHING = "–"
printable = tables.printable
duration = tables.duration
OWN_KERNELS = INTEGER_KERNELS | {FP8_KERNEL}

_KINDS = {
    RowKind.FP32: "FP32",
    RowKind.EVERYWHERE: "quantized everywhere",
    RowKind.SPIKE_AWARE: "spike-aware",
    RowKind.CONTROL_LOWEST: "control: lowest ratio",
    RowKind.CONTROL_RANDOM: "control: random",
    RowKind.CONTROL_CHANNELS: "control: random channels",
    RowKind.CONTROL_FACTORS: "control: permuted factors",
    RowKind.CONTROL_PREFIX: "control: random prefix",
    RowKind.WEIGHT_ONLY: "weight-only",
    RowKind.MODEL: "this model",
}
_SCHEMES: Mapping[Scheme | None, str] = {Scheme.SYMMETRIC: "symmetric", Scheme.PER_TENSOR_WEIGHTS: "per-tensor weights"}
_FORMATS: Mapping[Precision | None, str] = {Precision.W8A8_TOKEN: "per token"}
# Where speed is told, of which all rows are at 8 bits.
_TIMED = _KINDS | {RowKind.EVERYWHERE: "INT8 everywhere", RowKind.WEIGHT_ONLY: "MatMulNBits, 8 bits"}

REASONS: Mapping[str, str] = {
    Reason.SPIKE: "its spikes cost more than it saves",
    Reason.BUDGET: "a candidate, but the budget is met without it or the cap is reached",
    Reason.OVERRIDE: "set by hand",
    Reason.DEFAULT: "nothing speaks against the default",
    Reason.ASKED: "8-bit weights, as the recipe asks for",
    Reason.WITHIN_BUDGET: "8-bit weights, which cost no more than the budget leaves",
    Reason.OVER_BUDGET: "8-bit weights would cost more than the budget leaves",
    Reason.UNSUPPORTED: "the target cannot run it otherwise",
    Reason.TOO_FEW_TOKENS: "an expert that saw too few calibration tokens",
}

CAUSES: Mapping[str, str] = {
    Cause.BUDGET: "applied, because keeping sites alone does not meet the KL budget",
    Cause.OVERRIDE: "applied by hand",
    Cause.TRIED: "applied, to be measured",
    Cause.NOT_NEEDED: "refused: every site that it is for is kept",
    Cause.IMPOSSIBLE: "refused: the graph has no place for it",
}


def rung_name(rung: Rung | ComparedRung) -> str:
    """A rung's name for people, such as "control: random, seed 1"."""
    return row_name(rung.id, f" {rung.bits or 8} bit" if rung.id.kind is RowKind.WEIGHT_ONLY else "")


def row_name(row: RowId, beside: str = "") -> str:
    """A row's name for people, with what stands beside its kind."""
    name = f"{_KINDS[row.kind]}{beside}" if row.kind in _KINDS else _plain_name(row)
    other = _SCHEMES.get(row.scheme) or _FORMATS.get(row.format, row.format) or row.kept_in or row.target
    name = f"{name} ({other})" if other is not None else name
    name = f"{name} with {printable(row.with_remedy)}" if row.with_remedy else name
    name = f"{name} without {printable(row.without_remedy)}" if row.without_remedy else name
    return name if row.seed is None else f"{name}, seed {row.seed}"


def timed_name(timed: SpeedRow) -> str:
    """The name of a row of `bench` for people: its target is said where that is not the CPU."""
    row = replace(timed.id, target=None) if timed.id.target == timed.target else timed.id
    named = row_name(row) if row.format is not None else _plain_name(row)
    name = _TIMED[row.kind] if row == RowId(row.kind) else named
    return name if timed.target == "cpu" else f"{name} ({printable(timed.target)})"


def _plain_name(row: RowId) -> str:
    """A row's name as JSON has it, with blanks."""
    return printable(row.name).replace("_", " ")


def stress(row: RowId) -> Literal["ours", "aside", ""]:
    """How a row stands out from the others: what the tool made, and the controls beside it."""
    if row == SPIKE_AWARE:
        return "ours"
    return "aside" if row.kind.startswith("control") else ""


def why(site: SitePlan) -> str:
    """Why a site has its precision, in words."""
    return reason_words(site.reason, site.evidence.note)


def reason_words(reason: str, note: str | None) -> str:
    """A reason in words: those of the plan where it has some. Files of others may name one that we do not know."""
    return printable(note) if note else REASONS.get(reason, "a reason that this version does not know")


def short(site: SitePlan) -> str:
    """A site's name where there is little room, such as "1 down_proj": its layer and the end of its key."""
    name = clipped(printable(site.key.rsplit(".", 1)[-1]), 24)
    return name if site.layer is None else f"{site.layer} {name}"


def token(evidence: Evidence) -> str:
    """The token at the maximum: its text, quoted where blanks would hide; its number where there is no text."""
    return token_words(evidence.token, evidence.token_text)


def token_words(number: int | None, text: str | None) -> str:
    """A token by its text, or by its number where there is none."""
    if text is None:
        return NOTHING if number is None else f"#{number}"
    return printable(text) if text and text == text.strip() else f"'{printable(text)}'"


def clipped(text: str, width: float) -> str:
    """A text of so many characters at most, with an ellipsis where some are missing."""
    return text if len(text) <= width else text[: int(width) - 1] + "…"


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits and never an exponent above zero."""
    if value is None:
        return NOTHING
    if not isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    decimals = digits - 1 - floor(log10(abs(value)))
    return f"{value:,.{max(0, decimals)}f}" if decimals < digits + 3 else f"{value:.1e}"


def error(stderr: float | None) -> str:
    """A standard error: two digits of it, or a question mark where it is not known."""
    return "±?" if stderr is None else "±0" if stderr == 0 else f"±{number(stderr, 2)}"


def percent(share: float | None) -> str:
    """A change in per cent, with its sign: two decimals below 10 %, fewer above."""
    if share is None:
        return NOTHING
    hundredths = share * 100
    if not isfinite(hundredths):
        return "not finite"
    decimals = 2 if abs(hundredths) < 9.995 else 1 if abs(hundredths) < 99.95 else 0
    return f"{hundredths:+,.{decimals}f} %"


def megabytes(size: int) -> str:
    """A size in MB (10**6 bytes), with three significant digits and at most two decimals."""
    value = size / 1e6
    return f"{value:,.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def over_fp32(report: Report, rung: Rung) -> float | None:
    """How much higher the rung's perplexity is than that of FP32, as a share; None without an FP32 rung."""
    fp32 = report.rung(FP32)
    return None if fp32 is None else rung.perplexity / fp32.perplexity - 1


def integer_kernels(executed: Mapping[str, int]) -> int:
    """How many of the executed nodes multiply in integers."""
    return sum(count for op, count in executed.items() if op in INTEGER_KERNELS)


def kernels(plan: Plan, report: Report) -> str:
    """How many of the planned integer sites ran as such, and on which target where it is not the CPU."""
    planned = integers_planned(plan)
    if report.target is not None and not report.target.executed_here:
        return f"not executed here; {planned} integer sites planned for {report.target.name}"
    beside = f", on {plan.recipe.profile.ran_on}" if plan.recipe.target != "cpu" else ""
    return f"{integer_kernels(report.executed)} integer, of {planned} planned{beside}"


def integers_planned(plan: Plan) -> int:
    """How many sites are to multiply in integers, by a range or by token; a head that is by token is one of them."""
    by_token = (site for site in plan.sites if site.precision.row.by_token and site.role is not Role.EMBEDDING)
    return len(plan.integer_sites) + len(list(by_token))


def operator_sites(found: Report | Applied) -> list[str]:
    """How the sites in our operators ran, a line for each operator that has some."""
    runs = (("FP8", found.fp8), ("by token", found.by_token), ("with an outlier branch", found.with_branch))
    return [_operator_run(what, run) for what, run in runs if run is not None]


def _operator_run(what: str, run: OperatorRun) -> str:
    if run.library is None:
        return f"{run.sites} {what}, as the function in the file: no operator library here"
    return f"{run.kernels} {what} in the operator library ({run.library}), of {run.sites} planned"


def folded(why: Mapping[str, str]) -> list[str]:
    """Which sites a runtime need not run, a line for each reason."""
    reasons: dict[str, list[str]] = {}
    for key, reason in why.items():
        reasons.setdefault(reason, []).append(printable(key))
    return [f"{reason}, whatever goes in: {', '.join(keys)}" for reason, keys in reasons.items()]


def precisions(plan: Plan) -> list[tuple[str, str]]:
    """The precisions that a plan uses, and what each of them means."""
    used = sorted({site.precision for site in plan.sites}, key=lambda p: (p.bits is None, p.value))
    return [(precision.value, precision.row.words) for precision in used]


def kept_and_scaled(plan: Plan) -> tuple[int, int]:
    """How many sites are kept in high precision, and how many are integers with scales by token, kept or not."""
    return sum(not s.precision.row.by_token for s in plan.kept), sum(s.precision.row.by_token for s in plan.counted)


def kept_share(plan: Plan, rung: Rung) -> str:
    """Kept sites of all that count, such as "2/56"; nothing where no site is quantized as planned."""
    if rung.id == FP32 or rung.id.all_in_one:
        return NOTHING
    return f"{len(rung.kept)}/{len(plan.counted)}"


def won_back(report: Report, bits: int) -> float | None:
    """The share of what quantizing everywhere loses that the spike-aware plan wins back; None if nothing is lost."""
    everywhere, aware = report.rung(EVERYWHERE, bits), report.rung(SPIKE_AWARE, bits)
    if everywhere is None or aware is None:
        return None
    loss, rest = over_fp32(report, everywhere), over_fp32(report, aware)
    return None if loss is None or rest is None or loss <= 0 else (loss - rest) / loss


def standing(status: Standing) -> str:
    """Ready, or why not: it is not, or it is not known."""
    return status.replace("_", " ").capitalize()


def advised(advice: Advice) -> str:
    """What to change, as a recipe has it, and what happens then."""
    return f"{recipe_lines(advice.recipe, '; ')}: {advice.say}"


def recipe_lines(fields: Mapping[str, Any], between: str = "\n") -> str:
    """Fields as the TOML that `--recipe` takes; those that are null are not given there."""
    lines = (f"{name} = {_toml(value)}" for name, value in fields.items() if value is not None)
    return between.join(map(printable, lines))


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON's strings, numbers and booleans are TOML's as well, but for one control character.
    return json_text(value, "the recipe", indent=None).replace("\x7f", "\\u007f")
