"""What is not finite is decided about as well: kept, in a format that holds it, or refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import pytest

from spq_graph.decisions.decide import decide
from spq_graph.documents.plan import Plan
from spq_graph.documents.recipe import Recipe
from spq_graph.terms.errors import NotFiniteError
from spq_graph.terms.precision import Precision
from tests.support.deciding import MODEL, TEN, kept, make


class Overflowing:
    """KL of nothing but what is not finite, wherever one of these sites is in integers."""

    def __init__(self, broken: Collection[str], formats: Collection[Precision] = ()) -> None:
        self.broken, self.formats = set(broken), set(formats)

    def __call__(self, precisions: Mapping[str, Precision]) -> float:
        if any((p.takes_branch and key in self.broken) or p in self.formats for key, p in precisions.items()):
            raise NotFiniteError("the logits are NaN or infinite", where="here")
        return 0.001 * len(precisions) / 10


def overflowing(measure: Overflowing, recipe: Recipe) -> Plan:
    sites, ranges = make(dict.fromkeys(TEN, 40.0))
    return decide(sites, ranges, recipe, MODEL, measure=measure, tokens=64)


def test_what_is_not_finite_when_it_is_quantized_is_kept() -> None:
    plan = overflowing(Overflowing(["s3", "s7"]), Recipe(max_kept=0.5))
    assert kept(plan) == {"s3", "s7"}
    assert plan.search.kl_everywhere is None
    assert plan.search.kl is not None
    by_key = {s.key: s.evidence.kl for s in plan.sites}
    assert by_key["s3"] is by_key["s7"] is None  # nothing that JSON lacks is written down
    json.loads(plan.to_json(), parse_constant=pytest.fail)


def test_what_was_decided_must_be_finite() -> None:
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        overflowing(Overflowing(TEN), Recipe(max_kept=0.2))


def test_a_format_that_is_not_finite_is_not_chosen() -> None:
    every = {p for p in Precision if p.bits is None and p is not Precision.FP32}
    plan = overflowing(Overflowing(["s3"], every), Recipe(max_kept=0.5))
    assert {s.precision for s in plan.kept} == {Precision.FP32}
    assert set(plan.search.formats or {}) == {"as_is"}


def test_a_result_that_float16_does_not_hold_makes_a_kept_site_another_format() -> None:
    sites, ranges = make(dict.fromkeys(TEN, 40.0))
    recipe = Recipe(target="cuda", high_precision="fp16", keep=["s*"])
    plan = decide(sites, ranges, recipe, MODEL, results={"s1": 65_505.0, "s2": 65_504.0})
    by_key = {s.key: s for s in plan.sites}
    assert (by_key["s1"].precision, by_key["s2"].precision) == (Precision.BF16, Precision.FP16)
    assert "beyond float16" in (by_key["s1"].evidence.note or "")
