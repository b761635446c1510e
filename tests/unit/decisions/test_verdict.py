"""Ready is said of what was measured, and within the limit."""

from __future__ import annotations

import pytest

from spq_graph.decisions.verdict import READY_WITHIN, judge
from spq_graph.documents.report import LogitsRef, Report
from spq_graph.documents.search import Search
from spq_graph.documents.verdict import Standing, Verdict
from spq_graph.terms.logits import Given
from spq_graph.terms.rows import FP32, SPIKE_AWARE
from tests.support.samples import sample_plan, sample_report


@pytest.mark.parametrize(
    ("loss", "status"),
    [(0.0, Standing.READY), (0.99 * READY_WITHIN, Standing.READY), (1.01 * READY_WITHIN, Standing.NOT_READY)],
)
def test_measured(loss: float, status: Standing) -> None:
    plan, report = sample_plan(), sample_report()
    aware, full = report.rung(SPIKE_AWARE, plan.recipe.bits), report.rung(FP32)
    assert aware is not None
    assert full is not None
    aware.perplexity = full.perplexity * (1 + loss)
    verdict = judge(plan, report)
    assert (verdict.status, verdict.ready) == (status, status is Standing.READY)
    assert any("above FP32" in warning for warning in verdict.warnings) is (status is Standing.NOT_READY)


@pytest.mark.parametrize("met", [False, True])
def test_without_a_text_nothing_is_ready(met: bool) -> None:
    """A budget of KL that was met on the data that sites were chosen by is no measurement."""
    plan = sample_plan().model_copy(update={"budget_met": met})
    verdict = judge(plan, sample_report(ladder=False))
    assert (verdict.status, verdict.ready) == (Standing.NOT_MEASURED, False)
    assert any("was not measured on a text: pass --text FILE" in warning for warning in verdict.warnings)


@pytest.mark.parametrize(
    ("logits", "told", "untold"),
    [
        (LogitsRef(given=Given.NONE, note="no logits"), "no logits; sites were chosen by their ratio", "--text FILE"),
        (LogitsRef(given=Given.LAST, note="of the last"), "of the last", "accuracy cannot be measured"),
        (LogitsRef(given=Given.EVERY), "pass --text FILE", "accuracy cannot be measured"),
    ],
)
def test_what_logits_there_are(logits: LogitsRef, told: str, untold: str) -> None:
    """Where there are none, no text helps, and none is asked for."""
    report = sample_report(ladder=False).model_copy(update={"logits": logits})
    verdict = judge(sample_plan(), report)
    assert verdict.status is Standing.NOT_MEASURED
    assert any(told in warning for warning in verdict.warnings)
    assert not any(untold in warning for warning in verdict.warnings)


def test_more_candidates_than_may_stay_by_their_ratio() -> None:
    """No KL was measured then, and none is told."""
    plan = sample_plan()
    search = Search(rule="ratio", candidates=9, cap=4)
    verdict = judge(plan.model_copy(update={"budget_met": False, "search": search}), sample_report())
    told = [warning for warning in verdict.warnings if "9 sites have a max/median ratio above" in warning]
    assert len(told) == 1
    assert "4 of them are kept" in told[0]
    assert not any("KL budget" in warning for warning in verdict.warnings)


def test_decisions_on_fewer_tokens_than_asked_for_are_told() -> None:
    plan = sample_plan()
    assert not any("sensitivity_tokens" in warning for warning in judge(plan, sample_report()).warnings)
    plan.search.tokens, plan.search.fewer = 300, "the calibration data has no more"
    (warning,) = [w for w in judge(plan, sample_report()).warnings if "sensitivity_tokens" in w]
    assert "300 tokens" in warning
    assert "4,096" in warning
    assert warning.endswith("the calibration data has no more")


def test_reports_of_the_first_edition_are_read() -> None:
    old = sample_report().to_dict()
    for ready, status in ((True, Standing.READY), (False, Standing.NOT_READY)):
        old["verdict"] = {"ready": ready, "summary": "", "warnings": []}
        assert Report.model_validate(old).verdict == Verdict(ready=ready, status=status, summary="")
