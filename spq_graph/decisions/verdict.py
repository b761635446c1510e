"""Ready or not, and what speaks against it."""

from __future__ import annotations

from collections.abc import Iterator

from spq_graph.decisions.advice import advise, why_not_met
from spq_graph.decisions.recommend import READY_WITHIN, recommend, surely_closer
from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.report import Report
from spq_graph.documents.verdict import Standing, Verdict
from spq_graph.terms.logits import Given
from spq_graph.terms.rows import BY_TOKEN, FP32, SPIKE_AWARE


def judge(plan: Plan, report: Report) -> Verdict:
    """Ready, not ready, or not measured, and what speaks against it."""
    warnings = []
    recommended = recommend(plan, report)
    aware, fp32 = report.rung(SPIKE_AWARE, plan.recipe.bits), report.rung(FP32)
    if aware is not None and fp32 is not None:
        loss = aware.perplexity / fp32.perplexity - 1
        status = Standing.READY if loss <= READY_WITHIN else Standing.NOT_READY
        if status is Standing.NOT_READY:
            warnings.append(f"perplexity is {loss:.2%} above FP32, more than {READY_WITHIN:.0%}")
            if recommended is None:
                warnings.append(f"no row of the ladder is within {READY_WITHIN:.0%} of FP32")
    else:
        status = Standing.NOT_MEASURED
    warnings += _of_logits(report, status)
    if not plan.budget_met:
        warnings.append(why_not_met(plan))
    if plan.search.fewer is not None:
        warnings.append(decided_on_fewer(plan, plan.search.fewer))
    warnings += _of_tokens(plan, report)
    warnings += _of_running(report)
    unknown = [s for s in plan.sites if s.reason is Reason.TOO_FEW_TOKENS]
    if unknown:
        warnings.append(
            f"{len(unknown)} sites of experts that saw fewer than {plan.recipe.min_expert_tokens} calibration tokens "
            "stay as they are: calibrate on more text"
        )
    if plan.calibration.remark is not None:
        warnings.append(plan.calibration.remark)
    if plan.unmatched:
        warnings.append(f"{len(plan.unmatched)} products are no sites; `spq-graph inspect OUT --unmatched` says why")
    return Verdict(
        ready=status is Standing.READY,
        status=status,
        summary="",
        warnings=warnings,
        advice=advise(plan, lossy=status is Standing.NOT_READY),
        recommended=recommended,
    )


def decided_on_fewer(plan: Plan, why: str) -> str:
    """That decisions were measured on fewer tokens than the recipe asks for, and why."""
    asked = plan.recipe.sensitivity_tokens
    return (
        f"decisions were measured on {plan.search.tokens:,} tokens, not on the {asked:,} that sensitivity_tokens asks "
        f"for: {why}"
    )


def _of_logits(report: Report, status: Standing) -> Iterator[str]:
    """What cannot be measured, or was not."""
    logits = report.logits
    if logits is not None and logits.given is Given.NONE:
        yield f"{logits.note}; sites were chosen by their ratio, and accuracy cannot be measured"
        return
    if logits is not None and logits.note:
        yield logits.note
    if status is Standing.NOT_MEASURED:
        yield "accuracy was not measured on a text: pass --text FILE, without --no-eval"


def _of_tokens(plan: Plan, report: Report) -> Iterator[str]:
    """What ranges that are settled beforehand cost, where the target can work them out token by token."""
    by_token = report.rung(BY_TOKEN, 8)
    aware = report.rung(SPIKE_AWARE, plan.recipe.bits)
    if by_token is not None and aware is not None and surely_closer(by_token, aware):
        yield (
            f"ranges worked out by token come closer to FP32 with nothing kept: {BY_TOKEN.name} has KL "
            f"{by_token.kl:.2g} at 8 bits, and this plan {aware.kl:.2g}"
        )


def _of_running(report: Report) -> Iterator[str]:
    """What did not run as planned, or not here."""
    if report.target is not None and not report.target.executed_here:
        where = report.target
        yield (
            f"not executed here: {where.absent}. The graph follows the rules of target {where.name} ({where.device}); "
            f"its figures come from the same quantizers on {where.measured_on}"
        )
    in_integers = "in ONNX Runtime's integer kernels and slower for what stands around them"
    for ran, sites, how in (
        (report.fp8, "FP8 sites", "in float32 with four times the memory"),
        (report.by_token, "sites by token", in_integers),
        (report.with_branch, "sites with an outlier branch", in_integers),
    ):
        if ran is not None and ran.kernels < ran.sites:
            reason = "is not here" if ran.library is None else "did not take them"
            yield (
                f"{ran.sites - ran.kernels} {sites} ran as functions of standard operators, {how}: the operator "
                f"library {reason}; `spq-graph doctor` says more"
            )
