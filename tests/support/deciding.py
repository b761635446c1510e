"""Decisions whose measurements are known beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from spq_graph.decisions.decide import decide
from spq_graph.documents.plan import ModelRef, Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.value_range import ValueRange
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site

MODEL = ModelRef(digest="sha256:0", origin="test")
TEN = {f"s{n}": 0.0001 for n in range(10)}


def site(key: str, role: Role = Role.GLU_DOWN) -> Site:
    return Site(key=key, node=f"node_{key}", role=role, layer=0, shape=(8, 4), input=f"in_{key}")


def seen(ratio: float) -> ValueRange:
    """A range of 100 tokens at 1 and one at `ratio`."""
    maxima = np.ones((1, 101), dtype=np.float32)
    maxima[0, 0] = ratio
    ids, mask = np.full((1, 101), 7), np.ones((1, 101), dtype=np.int64)
    channels = np.full(8, ratio, np.float32)
    return ValueRange.observe(-maxima / 2, maxima, (-channels / 2, channels), ids, mask)


def make(ratios: Mapping[str, float], *more: Site) -> tuple[list[Site], Ranges]:
    sites = [*(site(key) for key in ratios), *more]
    values = {f"in_{key}": seen(ratio) for key, ratio in ratios.items()}
    values |= {s.input: seen(50.0) for s in more}
    return sites, Ranges("sha256:0", values, tokens=101, sequences=1)


class Additive:
    """KL is the sum of what each site costs, by site in integers and by format else; it remembers what it was asked.

    Scales by token cost what static ones do, where `formats` does not say otherwise.
    """

    def __init__(self, costs: Mapping[str, float], formats: Mapping[Precision, float] | None = None) -> None:
        self.costs, self.formats = costs, formats or {}
        self.asked: list[dict[str, Precision]] = []

    def __call__(self, precisions: Mapping[str, Precision]) -> float:
        assert Precision.FP32 not in precisions.values()  # what the graph has is not said
        self.asked.append(dict(precisions))
        return math.fsum(self.cost(key, precision) for key, precision in precisions.items())

    def cost(self, key: str, precision: Precision) -> float:
        default = self.costs.get(key, 0.0) if precision.takes_branch else 0.0
        return self.formats.get(precision, default)


def run(
    costs: Mapping[str, float],
    recipe: Recipe,
    *more: Site,
    ratios: Mapping[str, float] | None = None,
    formats: Mapping[Precision, float] | None = None,
) -> tuple[Plan, Additive]:
    sites, ranges = make(ratios or dict.fromkeys(costs, 40.0), *more)
    measure = Additive(costs, formats)
    return decide(sites, ranges, recipe, MODEL, measure=measure, tokens=64), measure


def kept(plan: Plan) -> set[str]:
    return {s.key for s in plan.kept}
