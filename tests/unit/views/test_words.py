"""Figures, names and tokens as people read them, in the terminal and on the page."""

from __future__ import annotations

from dataclasses import replace

import pytest

from spq_graph.documents.plan import Evidence
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import RowId
from spq_graph.terms.site import Role
from spq_graph.views import words
from spq_graph.views.headline import headline
from tests.support.samples import sample_plan, sample_report, sample_rung


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (412.5, "412"),
        (36.0, "36.0"),
        (1.6, "1.60"),
        (0.00448, "0.00448"),
        (0.00032, "3.2e-04"),
        (12345.6, "12,346"),
        (-2.0, "-2.00"),
        (float("inf"), "inf"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0004, "+0.04 %"), (-0.0001, "-0.01 %"), (0.1234, "+12.3 %"), (3.0, "+300 %"), (float("nan"), "not finite")],
)
def test_changes(share: float, text: str) -> None:
    assert words.percent(share) == text


def test_a_head_by_token_is_among_the_products_in_integers_and_the_embedding_that_reads_its_codes_is_not() -> None:
    plan = sample_plan()
    before = words.integers_planned(plan)
    ends = [replace(plan.sites[0].site, role=role) for role in (Role.LM_HEAD, Role.EMBEDDING)]
    sites = [plan.sites[0].model_copy(update={"site": end, "precision": Precision.W8A8_TOKEN}) for end in ends]
    assert words.integers_planned(plan.model_copy(update={"sites": [*plan.sites, *sites]})) == before + 1


@pytest.mark.parametrize(
    ("name", "seed", "text"),
    [
        ("fp32", None, "FP32"),
        ("everywhere", None, "quantized everywhere"),
        ("control_random", 1, "control: random, seed 1"),
        ("weight_only", None, "weight-only 8 bit"),
        ("spike_aware_fp8_e4m3", None, "spike-aware (fp8_e4m3)"),
        ("everywhere_symmetric", None, "quantized everywhere (symmetric)"),
        ("everywhere_with_smooth", None, "quantized everywhere with smooth"),
        ("spike_aware_without_peel", None, "spike-aware without peel"),
        ("something_new", None, "something new"),
    ],
)
def test_rung_names(name: str, seed: int | None, text: str) -> None:
    assert words.rung_name(sample_rung(RowId.read(name, seed), 8, 0.0)) == text


@pytest.mark.parametrize(
    ("evidence", "text"),
    [
        (Evidence(), "–"),
        (Evidence(token=7), "#7"),
        (Evidence(token=7, token_text="<s>"), "<s>"),
        (Evidence(token=7, token_text=" a"), "' a'"),
        (Evidence(token=7, token_text=""), "''"),
        (Evidence(token=7, token_text="\n\ud800"), "'\\n\\ud800'"),
    ],
)
def test_tokens(evidence: Evidence, text: str) -> None:
    assert words.token(evidence) == text


def test_what_was_won_back() -> None:
    assert words.won_back(sample_report(), 8) == pytest.approx((0.0071 - 0.0004) / 0.0071)
    assert words.won_back(sample_report(), 5) is None


def test_what_is_in_integers_by_token_does_not_stay_in_high_precision() -> None:
    plan = sample_plan()
    one = plan.kept[0].key
    by_token = plan.with_precisions(lambda s: Precision.W8A8_TOKEN if s.key == one else s.precision)
    assert "2 of 56 sites stay in high precision and" in headline(plan, sample_report())
    said = headline(by_token, sample_report())
    assert "1 of 56 sites stay in high precision, 1 have scales by token and" in said
