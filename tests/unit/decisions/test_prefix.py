"""A prefix in a plan: how it grows, when it is taken, what the plan says of it, and what rows stand on without it."""

from __future__ import annotations

import numpy as np
import pytest

from spq_graph.decisions.decide import decide
from spq_graph.decisions.other_treatments import Footings, behind
from spq_graph.decisions.prefix import Footing, grown, most_trials
from spq_graph.decisions.retarget import retarget
from spq_graph.decisions.variants import source_behind, variants
from spq_graph.documents.changes import Peel, Prefix, Scale
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.treatment import Cause, tried
from spq_graph.documents.value_range import ValueRange
from spq_graph.terms.precision import Precision
from tests.support.deciding import MODEL, site

NAMES = [f"s{n}" for n in range(4)]
SITES = [site(name) for name in NAMES]
STORED = {s.key: Precision.FP32 for s in SITES}


def recipe(**prefix: object) -> Recipe:
    return Recipe(spike_ratio=1e9, remedies={"prefix": {"use": "auto", **prefix}})


def seen(largest: float) -> ValueRange:
    """Four channels, of which the last holds what is the largest."""
    maxima = np.ones((1, 10), np.float32)
    maxima[0, 0] = largest
    high = np.array([1, 0.5, 0.25, largest], np.float32)
    ids, mask = np.arange(10)[None], np.ones((1, 10), np.int64)
    return ValueRange.observe(-maxima, maxima, (-high, high), ids, mask)


def prefix(*tokens: int) -> Prefix:
    return Prefix.of(tokens, {"past_key_values.0.key": np.full((1, 2, len(tokens), 4), sum(tokens), np.float32)})


VALUES = {s.input: seen(100.0) for s in SITES}
WITHIN = {s.input: seen(2.0) for s in SITES}
OWN, BARE, CONTROL = Footing(prefix(3, 1), WITHIN), Footing(None, VALUES), Footing(prefix(4, 4), VALUES)


def planned(on: Footing, wanted: Recipe | None = None) -> Plan:
    wanted = wanted or recipe()
    ranges = Ranges("", values=dict(on.seen))
    return decide(SITES, ranges, wanted, MODEL, standing=on.treatments(SITES, wanted, VALUES))


@pytest.mark.parametrize(
    ("told", "wanted", "found"),
    [
        ({}, {}, ()),  # no token helps
        ({(): 0.001, (1,): 0.0001}, {}, ()),  # none is needed
        ({(1,): 0.9}, {}, ()),  # none by enough
        ({(1,): 0.9}, {"use": "always"}, (1,)),
        ({(1,): 0.5, (2,): 0.6}, {}, (1,)),
        ({(1,): 0.5, (1, 3): 0.3}, {}, (1, 3)),
        ({(1,): 0.5, (1, 3): 0.3, (1, 3, 2): 0.1}, {"most": 2}, (1, 3)),
        ({(2,): 0.5, (2, 1): 0.45}, {"use": "always"}, (2,)),
    ],
)
def test_it_grows_by_what_saves_most(
    told: dict[tuple[int, ...], float], wanted: dict[str, object], found: tuple[int, ...]
) -> None:
    asked: list[tuple[int, ...]] = []

    def kl(tokens: tuple[int, ...]) -> float:
        asked.append(tokens)
        return told.get(tokens, 1.0)

    made = grown([1, 2, 3], kl, lambda tokens: 0.001, recipe(**wanted))
    assert made.tokens == found
    assert len(asked) == len(set(asked)) <= most_trials(recipe(**wanted), 3)
    assert made.kls["none"] == told.get((), 1.0)
    assert len(made.kls) == len(asked)


def test_what_the_source_cannot_stand_behind_is_not_tried() -> None:
    saves = {(1,): 0.1, (2,): 0.5, (2, 1): 0.3}
    alone = {(1,): 0.02, (2,): 0.003, (2, 1): 0.0041, (2, 3): 0.001}
    made = grown([1, 2, 3], lambda tokens: saves.get(tokens, 1.0), lambda tokens: alone.get(tokens, 0.0), recipe())
    assert made.tokens == (2,)  # token 1 saves more, and costs the source more than the budget by itself
    assert made.alone == {"1": 0.02, "2": 0.003, "3": 0.0, "2 1": 0.0041, "2 3": 0.001}
    assert set(made.kls) == {"none", "2", "3", "2 3"}


def test_who_asks_for_a_prefix_in_any_case_gets_one_that_costs_the_source() -> None:
    made = grown([1, 2], lambda tokens: {(1,): 0.1}.get(tokens, 1.0), lambda tokens: 9.0, recipe(use="always"))
    assert (made.tokens, made.alone) == ((1,), {})


def test_the_plan_says_why() -> None:
    (applied,) = planned(OWN).treatments
    assert (applied.applied, applied.reason, applied.narrower) == (True, Cause.BUDGET, 50.0)
    assert set(applied.sites) == set(STORED)
    assert planned(OWN, recipe(use="always")).treatments[0].reason is Cause.OVERRIDE
    (refused,) = planned(Footing(None, VALUES, {"none": 1.0})).treatments
    assert (refused.applied, refused.reason, refused.changes) == (False, Cause.NOT_NEEDED, ())
    (refused,) = planned(Footing(None, VALUES, alone={"3": 1.0})).treatments
    assert refused.reason is Cause.NOT_NEEDED
    (impossible,) = planned(Footing(None, VALUES, refused="no cache")).treatments
    assert (impossible.reason, impossible.note) == (Cause.IMPOSSIBLE, "no cache")
    assert planned(BARE).treatments == []


def test_rows_stand_on_what_they_have() -> None:
    plan = planned(OWN)
    found = {row.id.name: row.plan for row in variants(plan, STORED, footings=Footings(OWN, BARE, CONTROL))}
    assert found["everywhere"].prefix is None
    assert {s.range for s in found["everywhere"].sites} == {(-100.0, 100.0)}
    assert {s.range for s in found["spike_aware"].sites} == {(-2.0, 2.0)}
    assert found["control_prefix"].prefix == CONTROL.prefix
    assert {s.range for s in found["control_prefix"].sites} == {(-100.0, 100.0)}
    assert "control_prefix" not in {row.id.name for row in variants(plan, STORED, footings=Footings(OWN, BARE))}
    (source,) = source_behind(plan, STORED)
    assert (source.id.name, source.plan.prefix, source.plan.integer_sites) == ("fp32_with_prefix", plan.prefix, [])
    assert source_behind(planned(BARE), STORED) == []


def test_branches_and_factors_have_the_ranges_of_where_they_stand() -> None:
    value = SITES[0].input
    peel = Peel(value=value, channels=(3,), low=-0.5, high=0.5)
    scale = Scale(value=value, tensor="w", axis=0, exponents=(1, 0, 0, 1), low=-1.0, high=1.0, peeled=(-1.0, 1.0))
    plan = planned(OWN)
    plan = plan.with_treatments([*plan.treatments, *tried(SITES, {value: scale}, {value: peel})])
    moved = behind(plan, BARE)
    assert moved.prefix is None
    assert (moved.scales[value].low, moved.scales[value].high) == (-50.0, 50.0)
    assert (moved.peels[value].low, moved.peels[value].high) == (-0.5, 0.5)
    assert moved.scales[value].peeled == (-1.0, 1.0)
    again = behind(plan, Footing(OWN.prefix, WITHIN))
    assert (again.scales[value].low, again.scales[value].high, again.prefix) == (-1.0, 1.0, OWN.prefix)


def test_another_target_keeps_it() -> None:
    assert retarget(planned(OWN), "tensorrt").prefix == OWN.prefix
