"""Which rows the ladder of a plan has, and what each of them decides: pure, nothing is measured here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from spq_graph.decisions.other_treatments import Footings, retreated, throughout
from spq_graph.decisions.prefix import Footing
from spq_graph.documents.plan import Plan, Reason, SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import EVERYWHERE, FP32, SPIKE_AWARE, WEIGHT_ONLY, Extent, RowId, RowKind, Scheme

RANDOM_SEEDS = (0, 1, 2)
# The plan with head and embedding as the graph has them.
WITHOUT_HEAD = RowId(RowKind.SPIKE_AWARE, without_remedy="head_8bit")
# Nothing kept, and every remedy of the plan, where it has several.
WITH_ALL = RowId(RowKind.EVERYWHERE, with_remedy="all_remedies")
# Rows that a ladder has once, whatever bits it has rows of.
ROWS_ONCE = (FP32, WEIGHT_ONLY)
# Rows of a plan in a short ladder: what quantizing costs, and what is delivered.
SHORT_ROWS = (EVERYWHERE, SPIKE_AWARE)

# What stands against each remedy: the same of it, where it should not help.
CONTROLS: Mapping[str, RowKind] = {
    "peel": RowKind.CONTROL_CHANNELS,
    "smooth": RowKind.CONTROL_FACTORS,
    "prefix": RowKind.CONTROL_PREFIX,
}
# The source with a remedy that makes another model of it.
FP32_WITH_PREFIX = RowId(RowKind.FP32, with_remedy="prefix")

_UNKNOWN = Footings(*[Footing(None, MappingProxyType({}))] * 2)

LadderPlace = tuple[RowId, int]  # in a ladder: which row, at how many bits

SCHEMES: Mapping[Scheme | None, Mapping[str, str]] = {
    None: {},
    Scheme.SYMMETRIC: {"activations": "symmetric"},
    Scheme.PER_TENSOR_WEIGHTS: {"weights": "per_tensor"},
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One row to be measured: which it is, at how many bits, and the plan that it decides."""

    id: RowId
    bits: int
    plan: Plan

    @property
    def place(self) -> LadderPlace:
        """Where in a ladder it stands."""
        return self.id, self.bits


def rows_of(
    recipe: Recipe,
    *,
    formats: bool = True,
    controls: bool = True,
    remedies: Collection[str] = (),
    extent: Extent = Extent.FULL,
) -> list[RowId]:
    """The rows that a plan by this recipe gets, besides those that a ladder has once.

    Args:
        recipe: what is wanted, at one bit width.
        formats: whether the plan keeps a site that other formats can be tried at; before there is a plan, it may.
        controls: whether it keeps sites and leaves others that could be kept in their place.
        remedies: those that it applies.
        extent: how much the ladder shows.
    """
    if extent is Extent.SHORT:
        return list(SHORT_ROWS)
    others = [s for s in Scheme if any(getattr(recipe, name) != value for name, value in SCHEMES[s].items())]
    rows = [EVERYWHERE, *(RowId(RowKind.EVERYWHERE, scheme=scheme) for scheme in others), SPIKE_AWARE]
    if formats:
        rows += [RowId(RowKind.SPIKE_AWARE, kept_in=high) for high in recipe.profile.compared]
    if controls:
        rows.append(RowId(RowKind.CONTROL_LOWEST))
        rows += [RowId(RowKind.CONTROL_RANDOM, seed=recipe.seed + seed) for seed in RANDOM_SEEDS]
    for remedy in remedies:
        rows += [RowId(RowKind.EVERYWHERE, with_remedy=remedy), RowId(RowKind.SPIKE_AWARE, without_remedy=remedy)]
        rows.append(RowId(CONTROLS[remedy], seed=recipe.seed))
    if len(remedies) > 1:  # what controls, which have them all, stand beside
        rows.append(WITH_ALL)
    return rows


def variants(
    plan: Plan, stored: Mapping[str, Precision], extent: Extent = Extent.FULL, footings: Footings = _UNKNOWN
) -> list[Variant]:
    """The rows that belong to one plan, each model once.

    Kept sites in another format are no row of their own where that is the format that the plan gave them, nor are
    controls that drew the same sites.

    Args:
        plan: what was decided.
        stored: the format of each weight in the graph, by key.
        extent: how much is shown.
        footings: what rows stand on; where that is not known, there are no controls that need ranges of their own.
    """
    others = sorted((s for s in plan.counted if s not in plan.kept), key=_ratio)
    count = min(len(plan.kept), len(others))
    tried = {s.key for s in plan.kept if s.range is not None and s.reason is not Reason.TOO_FEW_TOKENS}

    remedies = tuple(dict.fromkeys(t.remedy for t in plan.treatments if t.applied))

    def planned(row: RowId) -> Plan:
        if row.kind is RowKind.EVERYWHERE:
            made = _quantized_but(plan, (), stored, SCHEMES[row.scheme])
            if row == WITH_ALL:
                return throughout(made)
            made = throughout(made, row.with_remedy) if row.with_remedy is not None else made.with_treatments(())
            return made if made.prefix is not None else footings.without_prefix(made)
        if row.kind in (RowKind.CONTROL_LOWEST, RowKind.CONTROL_RANDOM):
            picked: Sequence[int] = range(count)
            if row.kind is RowKind.CONTROL_RANDOM:
                picked = np.random.default_rng(row.seed).choice(len(others), size=count, replace=False).tolist()
            return throughout(_quantized_but(plan, {others[i].key for i in picked}, stored, rest=plan.usual))
        if row == WITHOUT_HEAD:
            return plan.with_precisions(lambda s: stored[s.key] if s.key in ends else s.precision)
        if row.kind in CONTROLS.values() or row.without_remedy:
            return retreated(plan, row, footings)
        return plan if row.kept_in is None else _kept_in(plan, row.kept_in, tried)

    rows = rows_of(plan.recipe, formats=bool(tried), controls=bool(count), remedies=remedies, extent=extent)
    ends = {s.key for s in plan.sites if s.aside and s.precision.row.by_block}
    if ends and extent is Extent.FULL:
        rows.insert(rows.index(SPIKE_AWARE) + 1, WITHOUT_HEAD)
    found = [Variant(row, plan.recipe.bits, planned(row)) for row in rows if footings.serve(row, plan)]
    anchors = {decisions_of(plan)} | {decisions_of(row.plan) for row in found if row.id == EVERYWHERE}
    once: list[Variant] = []
    for row in found:
        decided = decisions_of(row.plan)
        if row.id in (EVERYWHERE, SPIKE_AWARE) or decided not in anchors:
            once.append(row)
        anchors.add(decided)
    return once


def alike(rows: Iterable[Variant]) -> dict[object, list[Variant]]:
    """Rows by what they decide, in their order: those of one list are one model."""
    found: dict[object, list[Variant]] = {}
    for row in rows:
        found.setdefault(decisions_of(row.plan), []).append(row)
    return found


def decisions_of(plan: Plan) -> object:
    """What makes two plans the same model."""
    recipe = plan.recipe
    sites = tuple((s.key, s.precision, s.range if s.precision.needs_range else None) for s in plan.sites)
    read = {site.input for site in plan.sites if site.precision.takes_branch}
    branches = tuple((v, peel.channels, peel.low, peel.high) for v, peel in plan.peels.items() if v in read)
    factors = tuple((v, scale.exponents) for v, scale in plan.scales.items() if v in read)
    prefix = plan.prefix.digest if plan.prefix is not None else None
    return recipe.bits, recipe.activations, recipe.weights, sites, branches, factors, prefix


def source_behind(plan: Plan, stored: Mapping[str, Precision], extent: Extent = Extent.FULL) -> list[Variant]:
    """The source behind the plan's prefix, which makes another model of it; nothing where there is none."""
    if plan.prefix is None or extent is Extent.SHORT:
        return []
    return [Variant(FP32_WITH_PREFIX, 8, throughout(plan.with_precisions(lambda s: stored[s.key]), "prefix"))]


def weight_only(plan: Plan) -> Variant:
    """The honest rival: every weight in 8 bits by block, and no scale of activations that was settled beforehand."""
    target, by_block = plan.recipe.profile.weight_only
    return Variant(WEIGHT_ONLY, 8, _all_in(plan, by_block, target=target))


def in_other_formats(plan: Plan, extent: Extent = Extent.FULL) -> list[Variant]:
    """Every site that counts in one format, of those that the target tries beside integers by a range."""
    formats = plan.recipe.profile.everywhere if extent is Extent.FULL else ()
    return [Variant(RowId(RowKind.EVERYWHERE, format=one), 8, _all_in(plan, one)) for one in formats]


def _all_in(plan: Plan, precision: Precision, **recipe: object) -> Plan:
    counted = {s.key for s in plan.counted if s.range is not None or not precision.needs_range}
    made = plan.with_precisions(lambda s: precision if s.key in counted else s.precision, **recipe)
    return made.with_treatments(())


def _quantized_but(
    plan: Plan,
    kept: Collection[str],
    stored: Mapping[str, Precision],
    scheme: Mapping[str, str] = SCHEMES[None],
    *,
    rest: Precision | None = None,
) -> Plan:
    """The plan with every site that counts in integers, but these; by static scales, or as `rest` says."""
    rest = rest or Precision.integer(plan.recipe.bits)
    counted = {s.key for s in plan.counted}
    # The controls keep other sites in the format that most of the plan's kept ones have.
    common = Counter(s.precision for s in plan.kept).most_common(1)

    def becomes(site: SitePlan) -> Precision:
        if site.key not in counted or site.range is None:
            return site.precision
        if site.key not in kept:
            return rest
        return common[0][0] if common else stored[site.key]

    return plan.with_precisions(becomes, **scheme)


def _kept_in(plan: Plan, high: Precision, tried: Collection[str]) -> Plan:
    """The plan with these of its kept sites in another format, or in the nearest that the target has."""
    profile = plan.recipe.profile
    return plan.with_precisions(lambda s: profile.settle(high, s.largest)[0] if s.key in tried else s.precision)


def _ratio(site: SitePlan) -> tuple[float, str]:
    return (site.evidence.ratio if site.evidence.ratio is not None else math.inf, site.key)
