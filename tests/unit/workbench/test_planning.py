"""How far a decision is, while it is not known which way its search goes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from spq_graph.documents.recipe import Recipe
from spq_graph.terms.precision import Precision
from spq_graph.workbench.meter import SHARE_ALONE
from spq_graph.workbench.planning import _counted


def told_of(passes: list[int], candidates: int = 130, sites: int = 168) -> list[tuple[int, int]]:
    """What is told after each of these passes, of a model with so many sites."""
    every = [SimpleNamespace(input=f"x{n}", left_alone=lambda _: False) for n in range(sites)]
    seen = {site.input: SimpleNamespace(ratio=9.0 if n < candidates else 1.0) for n, site in enumerate(every)}
    bench = SimpleNamespace(found=SimpleNamespace(sites=every), stored=dict.fromkeys(seen, Precision.FP32))
    told: list[tuple[int, int]] = []
    after = _counted(cast(Any, bench), Recipe(), cast(Any, SimpleNamespace(values=seen)), lambda *of: told.append(of))
    for one in passes:
        after(one)
    return told


def test_the_source_and_one_evaluation_may_be_all() -> None:
    whole = SHARE_ALONE
    assert told_of([whole]) == [(whole, 2 * whole)]


def test_a_sensitive_model_is_not_taken_to_have_all_its_candidates_measured() -> None:
    """Of 130 candidates most are never measured where scales by token do: that is the shorter way, and tried first."""
    done, total = told_of([SHARE_ALONE] * 3)[-1]
    assert done == 3 * SHARE_ALONE
    assert total < SHARE_ALONE * 16


def test_what_takes_longer_than_the_shorter_way_is_told_by_the_longer_one() -> None:
    told = told_of([SHARE_ALONE] * 2 + [1] * 120)
    totals = [total for _, total in told]
    assert totals == sorted(totals)
    assert all(done < total for done, total in told)
    assert totals[-1] > totals[2]


def test_a_candidate_alone_counts_for_its_share_of_the_tokens() -> None:
    told = told_of([SHARE_ALONE, SHARE_ALONE, 1, SHARE_ALONE])
    assert [done for done, _ in told] == [SHARE_ALONE, 2 * SHARE_ALONE, 2 * SHARE_ALONE + 1, 3 * SHARE_ALONE + 1]
