"""Smoothing in the rule `auto`: when it comes, with which exponents, and what a plan and its rows say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spq_graph.decisions.decide import decide
from spq_graph.decisions.other_treatments import Footings, with_permuted_factors
from spq_graph.decisions.prefix import Footing
from spq_graph.decisions.retarget import retarget
from spq_graph.decisions.variants import variants
from spq_graph.documents.changes import Peel, Scale
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.treatment import Cause
from spq_graph.documents.value_range import ValueRange
from spq_graph.remedies.smooth import scaled
from spq_graph.terms.absorber import Absorber, Absorbers, Place, Unabsorbed, shared_alike
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from tests.support.deciding import MODEL, site

CHANNELS = 64
NAMES = [f"s{n}" for n in range(10)]


def seen(outliers: Mapping[int, float]) -> ValueRange:
    """Channels of size 1, but for these; their outliers on one token of 100."""
    high = np.ones(CHANNELS, np.float32)
    for channel, size in outliers.items():
        high[channel] = size
    maxima = np.ones((1, 100), dtype=np.float32)
    maxima[0, 3] = high.max()
    ids, mask = np.full((1, 100), 7), np.ones((1, 100), dtype=np.int64)
    return ValueRange.observe(-maxima, maxima, (-high, high), ids, mask)


# Every site has a channel of 64 times the usual size: more of them than may be kept.
VALUES = {f"in_{name}": seen({n: 64.0}) for n, name in enumerate(NAMES)}


class Rounding:
    """KL is the sum over sites of the square of the width that its quantizer covers, weights taking up to `most`."""

    def __init__(self, most: float) -> None:
        self.most, self.asked = most, 0

    def __call__(
        self,
        precisions: Mapping[str, Precision],
        peels: Mapping[str, Peel] | None = None,
        scales: Mapping[str, Scale] | None = None,
    ) -> float:
        self.asked += 1
        peels, scales = peels or {}, scales or {}
        integer = [f"in_{key}" for key, p in precisions.items() if p.takes_branch]
        return math.fsum(1e-5 * self.width(v, peels.get(v), scales.get(v)) ** 2 for v in integer)

    def width(self, value: str, peel: Peel | None, scale: Scale | None) -> float:
        if scale is not None and max(scale.exponents) > math.log2(self.most):
            return 1000.0  # the weights do not bear it
        covered = peel or scale or VALUES[value]
        return covered.high - covered.low


def absorbers(names: list[str]) -> Absorbers:
    found = tuple(Absorber(f"in_{n}", Place.NORM, f"{n}.norm", 0, (n,)) for n in names)
    others = tuple(Unabsorbed(f"in_{n}", (n,), "nothing takes them") for n in NAMES if n not in names)
    return Absorbers(found, others, lambda _: np.ones(CHANNELS, np.float32))


def made(names: list[str] = NAMES, most: float = 100.0, *, measure: bool = True, **recipe: Any) -> Plan:
    sites = [site(key) for key in NAMES]
    sites = [Site(key=s.key, node=s.node, role=s.role, layer=0, shape=(CHANNELS, 4), input=s.input) for s in sites]
    ranges = Ranges("sha256:0", dict(VALUES), tokens=100, sequences=1)
    wanted = Recipe.model_validate({"kl_budget": 0.01, "target": "portable", **recipe})
    return decide(sites, ranges, wanted, MODEL, measure=Rounding(most) if measure else None, absorbers=absorbers(names))


def smooth(use: str, **settings: Any) -> dict[str, Any]:
    return {"remedies": {"smooth": {"use": use, **settings}, "peel": {"use": "never"}}}


def test_where_kept_sites_do_not_do_the_exponent_that_costs_least_is_taken() -> None:
    plan = made(**smooth("auto", alpha=(0.5, 1.0)))
    assert len(plan.scales) == 10
    assert all(max(scale.exponents) == 6 for scale in plan.scales.values())  # all of it
    assert set(plan.search.kl_smoothed or {}) == {"norm 0.5", "norm 1"}
    assert plan.budget_met
    assert plan.kept == []
    assert all(t.reason is Cause.BUDGET and t.narrower == 64 for t in plan.treatments)
    assert plan.sites[0].range == (-64.0, 64.0)  # what calibration saw


class Hidden:
    """Two kinds of place, of which the second costs ten times what the first does, and weights nothing."""

    def __call__(
        self,
        precisions: Mapping[str, Precision],
        peels: Mapping[str, Peel] | None = None,
        scales: Mapping[str, Scale] | None = None,
    ) -> float:
        costs = {f"in_{name}": 0.1 if n < 5 else 1.0 for n, name in enumerate(NAMES)}
        integer = [f"in_{key}" for key, p in precisions.items() if p.takes_branch]
        return math.fsum(costs[value] * (0.1 if value in (scales or {}) else 1.0) for value in integer)


class Peeled(Hidden):
    """The same, where branches save what factors would, at so many of the first sites."""

    def __init__(self, saved: int) -> None:
        values = [f"in_{name}" for name in NAMES[:saved]]
        self.saved = dict.fromkeys(values, scaled(VALUES[values[0]], [0] * CHANNELS))

    def __call__(self, precisions: Any, peels: Any = None, scales: Any = None) -> float:
        return super().__call__(precisions, peels, {**(scales or {}), **(self.saved if peels else {})})


def of_two_kinds(measure: Any, **recipe: Any) -> Plan:
    """Sites behind norms, and as many behind GLUs."""
    both = absorbers(NAMES)
    places = [Place.NORM] * 5 + [Place.GLU] * 5
    found = tuple(replace(a, place=place) for a, place in zip(both.found, places, strict=True))
    sites = [Site(key=n, node=n, role=Role.GLU_DOWN, layer=0, shape=(CHANNELS, 4), input=f"in_{n}") for n in NAMES]
    ranges = Ranges("sha256:0", dict(VALUES), tokens=100, sequences=1)
    wanted = Recipe.model_validate({"target": "portable", **recipe})
    return decide(sites, ranges, wanted, MODEL, measure=measure, absorbers=replace(both, found=found))


@pytest.mark.parametrize(
    ("measure", "peel", "plan_s", "smoothed"),
    [(Hidden(), "auto", {}, 10), (Peeled(5), "auto", {"all": 0.55, "none": 5.05}, 5), (Hidden(), "never", {}, 10)],
    ids=["hidden", "saved by branches", "no branches"],
)
def test_a_place_whose_worth_a_costlier_one_hides_is_smoothed_beside_that(
    measure: Hidden, peel: str, plan_s: dict[str, float], smoothed: int
) -> None:
    remedies = {**smooth("auto", alpha=(0.5,))["remedies"], "peel": {"use": peel}}
    plan = of_two_kinds(measure, max_kept=0.0, remedies=remedies)
    # Norms alone save 0.45 of 5.5, less than a fifth; beside GLUs, 0.45 of 1, unless branches do.
    assert plan.search.kl_smoothed == {"glu 0.5": 1.0, "norm 0.5": 0.55, **plan_s}
    assert len(plan.scales) == smoothed


def test_factors_are_taken_back_where_branches_save_as_much() -> None:
    remedies = {**smooth("auto", alpha=(0.5,))["remedies"], "peel": {"use": "auto"}}
    plan = of_two_kinds(Peeled(10), max_kept=0.0, remedies=remedies)
    assert plan.search.kl_smoothed == {"glu 0.5": 1.0, "norm 0.5": 0.55, "all": 0.55, "none": 0.55}
    assert plan.scales == {}
    assert len(plan.peels) == 10
    assert all(peel.high == VALUES[value].channel_high[1] for value, peel in plan.peels.items() if value != "in_s1")


def of_glus(precisions: Any, peels: Any = None, scales: Any = None) -> float:
    """Five sites cost 0.1 whatever the factors, and five 1, or with factors 0.2."""
    dear = {f"in_{name}" for name in NAMES[5:]}
    integer = [f"in_{key}" for key, p in precisions.items() if p.takes_branch]
    return math.fsum((0.2 if v in (scales or {}) else 1.0) if v in dear else 0.1 for v in integer)


@pytest.mark.parametrize(
    ("most", "smoothed", "all_factors", "none"),
    [(0.5, 0, 0.5, 0.5), (0.4, 1, 0.7, 1.5)],
    ids=["all five", "four of five"],
)
def test_factors_are_taken_back_where_the_sites_that_need_them_are_kept(
    most: float, smoothed: int, all_factors: float, none: float
) -> None:
    plan = of_two_kinds(of_glus, max_kept=most, **smooth("auto", alpha=(0.5,)))
    assert plan.search.kl_smoothed == {"glu 0.5": 1.5, "norm 0.5": 1.5, "all": all_factors, "none": none}
    assert len(plan.kept) == 10 * most
    assert len(plan.scales) == smoothed


def test_what_the_weights_do_not_bear_is_not_taken() -> None:
    half = made(most=8.0, **smooth("auto", alpha=(0.5, 1.0)))
    assert all(max(scale.exponents) == 3 for scale in half.scales.values())
    none = made(most=1.0, **smooth("auto"))
    assert none.scales == {}
    assert none.treatments == []
    assert set(none.search.kl_smoothed or {}) == {"norm 0.3", "norm 0.5", "norm 0.65"}


def test_from_the_exponent_in_the_middle_on_only_what_may_save_more_is_measured() -> None:
    all_of_them = (0.1, 0.3, 0.5, 0.8, 1.0)
    up = made(**smooth("auto", alpha=all_of_them))  # the more is taken off activations, the better
    assert set(up.search.kl_smoothed or {}) == {"norm 0.5", "norm 0.8", "norm 1"}
    assert all(max(scale.exponents) == 6 for scale in up.scales.values())
    down = made(most=4.0, **smooth("auto", alpha=all_of_them))  # weights bear what 0.1 and 0.3 give them
    assert set(down.search.kl_smoothed or {}) == {"norm 0.1", "norm 0.3", "norm 0.5", "norm 0.8", "all", "none"}
    assert all(max(scale.exponents) == 2 for scale in down.scales.values())


def test_a_model_that_meets_its_budget_is_not_smoothed() -> None:
    plan = made(kl_budget=10.0)
    assert plan.treatments == []
    assert plan.search.kl_smoothed is None


def test_never_and_always() -> None:
    assert made(**smooth("never")).treatments == []
    always = made(kl_budget=10.0, **smooth("always", alpha=(0.5,)))
    assert len(always.scales) == 10
    assert {t.reason for t in always.treatments} == {Cause.OVERRIDE}


def test_where_nothing_takes_factors_the_plan_says_why() -> None:
    plan = made(NAMES[:7], **smooth("auto", alpha=(1.0,)))
    refused = [t for t in plan.treatments if not t.applied]
    assert [t.sites for t in refused] == [("s8",), ("s9",)]  # the other one is kept
    assert {(t.reason, t.note) for t in refused} == {(Cause.IMPOSSIBLE, "nothing takes them")}


def test_by_hand_without_measuring_by_the_exponent_in_the_middle() -> None:
    plan = made(measure=False, spike_ratio=1e6, **smooth("always", alpha=(0.3, 0.5, 0.8)))
    assert all(max(scale.exponents) == 3 for scale in plan.scales.values())


def with_both() -> Plan:
    return made(remedies={"smooth": {"use": "always", "alpha": (0.5,)}, "peel": {"use": "always", "channels": (4,)}})


def test_branches_have_what_smoothing_leaves() -> None:
    plan = with_both()
    assert len(plan.peels) == len(plan.scales) == 10
    for value, peel in plan.peels.items():
        after = scaled(VALUES[value], plan.scales[value].exponents)
        assert (peel.low, peel.high) == (
            np.delete(after.channel_low, peel.channels).min(),
            np.delete(after.channel_high, peel.channels).max(),
        )
    assert [t.remedy for t in plan.treatments] == ["smooth"] * 10 + ["peel"] * 10


def test_permuted_factors_are_shared_by_the_heads_that_share_values() -> None:
    plan = made(remedies={"smooth": {"use": "always", "alpha": (0.5,)}, "peel": {"use": "never"}})
    heads = (8, 2)
    exponents = np.repeat(np.arange(16).reshape(2, 1, 8) % 7, 4, axis=1).reshape(-1)

    def by_head(scale: Scale) -> Scale:
        return scale.model_copy(update={"heads": heads, "exponents": tuple(exponents.tolist())})

    of_heads = plan.with_treatments(
        t.model_copy(update={"changes": tuple(by_head(c) for c in t.changes if isinstance(c, Scale))})
        for t in plan.treatments
    )
    for value, scale in with_permuted_factors(of_heads, 0, VALUES).scales.items():
        found = np.asarray(scale.exponents)
        assert scale.exponents != of_heads.scales[value].exponents
        assert sorted(scale.exponents) == sorted(of_heads.scales[value].exponents)
        assert shared_alike(found, heads)


def test_each_row_has_the_ranges_that_its_treatments_leave() -> None:
    plan = with_both()
    stored = {s.key: Precision.FP32 for s in plan.sites}
    found = {
        row.id.name: row.plan
        for row in variants(plan, stored, footings=Footings(Footing(None, VALUES), Footing(None, VALUES)))
    }
    rough = found["spike_aware_without_smooth"]
    assert rough.scales == {}
    for value, peel in rough.peels.items():
        inner = np.delete(VALUES[value].channel_high, peel.channels)
        assert (peel.low, peel.high) == (-inner.max(), inner.max())
    alone = found["everywhere_with_smooth"]
    assert alone.peels == {}
    assert alone.scales == plan.scales
    assert "everywhere_with_all_remedies" not in found  # which is the plan itself: nothing is kept
    control = found["control_factors"]
    for value, scale in control.scales.items():
        assert sorted(scale.exponents) == sorted(plan.scales[value].exponents)
        after = scaled(VALUES[value], scale.exponents)
        assert (scale.low, scale.high) == (after.low, after.high)
    assert "control_factors" not in {row.id.name for row in variants(plan, stored)}  # without ranges nobody knows


@pytest.mark.parametrize("target", ["cpu", "tensorrt", "openvino"])
def test_another_target_keeps_the_factors(target: Any) -> None:
    plan = with_both()
    assert retarget(plan, target).scales == plan.scales
