"""A plan with other treatments than its own, for the rows of a ladder: fewer of them, or at places drawn. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spq_graph.decisions.prefix import Footing
from spq_graph.documents.changes import Change, Peel, Prefix, Scale
from spq_graph.documents.plan import Plan
from spq_graph.documents.treatment import Treatment
from spq_graph.documents.value_range import ValueRange
from spq_graph.remedies.smooth import scaled
from spq_graph.terms.absorber import gathered, spread
from spq_graph.terms.rows import RowId, RowKind


@dataclass(frozen=True, slots=True)
class Footings:
    """What the rows of a ladder stand on.

    Attributes:
        own: what the plan does; without a prefix, `bare`.
        bare: no prefix.
        control: a prefix of as many tokens, drawn; None where there is none to stand against.
    """

    own: Footing
    bare: Footing
    control: Footing | None = None

    def serve(self, row: RowId, plan: Plan) -> bool:
        """Whether what calibration saw is known as far as a row of the plan asks for it."""
        if row.kind is RowKind.CONTROL_PREFIX:
            return self.control is not None
        return row.kind is not RowKind.CONTROL_FACTORS or plan.scales.keys() <= self.own.seen.keys()

    def without_prefix(self, plan: Plan) -> Plan:
        """A plan that has no prefix, with the ranges that follow."""
        return behind(plan, self.bare) if self.own.prefix is not None else plan


def retreated(plan: Plan, row: RowId, footings: Footings) -> Plan:
    """The plan as a row has it that leaves a remedy out, or stands against one.

    Args:
        plan: what was decided.
        row: `spike_aware` without a remedy, or a control of one.
        footings: what rows may stand on, as far as the row asks for it.
    """
    if row.kind is RowKind.CONTROL_PREFIX:
        assert footings.control is not None
        return behind(plan, footings.control)
    if row.kind is RowKind.CONTROL_CHANNELS:
        return at_random_channels(plan, row.seed or 0)
    if row.kind is RowKind.CONTROL_FACTORS:
        return with_permuted_factors(plan, row.seed or 0, footings.own.seen)
    if row.without_remedy == "prefix":
        return behind(plan, footings.bare)
    return without(plan, row.without_remedy or "")


def throughout(plan: Plan, remedy: str | None = None) -> Plan:
    """The plan with every treatment that it names, also at sites that it keeps and a row does not.

    Args:
        plan: what was decided.
        remedy: leave out all others.
    """
    made = plan.with_treatments(t.model_copy(update={"applied": bool(t.changes)}) for t in plan.treatments)
    for other in {t.remedy for t in plan.treatments} - {remedy} if remedy is not None else ():
        made = without(made, other)
    return made


def without(plan: Plan, remedy: str) -> Plan:
    """The plan without a remedy; outlier branches beside factors that go have the range of channels as they were."""
    left = [t for t in plan.treatments if t.remedy != remedy]
    gone = {} if remedy != "smooth" else plan.scales

    def unscaled(change: Change) -> Change:
        scale = gone.get(change.value) if isinstance(change, Peel) else None
        if scale is None or scale.peeled is None:
            return change
        return change.model_copy(update={"low": scale.peeled[0], "high": scale.peeled[1]})

    return plan.with_treatments(t.model_copy(update={"changes": tuple(map(unscaled, t.changes))}) for t in left)


def behind(plan: Plan, on: Footing) -> Plan:
    """The plan behind another prefix, or none, with the ranges that activations have there.

    Args:
        plan: what was decided.
        on: the prefix, and what calibration saw with it, of every activation that a quantizer covers.
    """
    scales, peels, seen = plan.scales, plan.peels, on.seen

    def moved(change: Change) -> Change:
        if isinstance(change, Prefix):
            return on.prefix or change
        there = seen.get(change.value)
        if there is None:
            return change
        if isinstance(change, Peel):
            scale = scales.get(change.value)
            there = scaled(there, scale.exponents) if scale is not None else there
            return change.model_copy(update=_ends(there, change.channels))
        peel = peels.get(change.value)
        peeled = tuple(_ends(there, peel.channels).values()) if peel is not None else None
        return change.model_copy(update={**_ends(scaled(there, change.exponents)), "peeled": peeled})

    sites = [
        s.model_copy(update={"range": (there.low, there.high)}) if (there := seen.get(s.input)) is not None else s
        for s in plan.sites
    ]
    made = _with_changes(plan.model_copy(update={"sites": sites}), moved)
    return made if on.prefix is not None else without(made, "prefix")


def _ends(seen: ValueRange, left_out: Sequence[int] = ()) -> dict[str, float]:
    """Smallest and largest element of the other channels, as changes have them."""
    low, high = (np.delete(ends, list(left_out)) for ends in (seen.channel_low, seen.channel_high))
    return {"low": float(low.min()), "high": float(high.max())}


def at_random_channels(plan: Plan, seed: int) -> Plan:
    """The plan with as many channels in each branch, drawn: what is left then has the range that was observed."""
    draw = np.random.default_rng(seed)
    read = {site.input: site for site in plan.sites if site.precision.takes_branch and site.range is not None}

    def drawn(change: Change) -> Change:
        site = read.get(change.value) if isinstance(change, Peel) else None
        if not isinstance(change, Peel) or site is None or site.range is None:
            return change
        scale = plan.scales.get(change.value)
        low, high = site.range if scale is None else (scale.low, scale.high)
        channels = sorted(draw.choice(site.shape[0], len(change.channels), replace=False).tolist())
        return change.model_copy(update={"channels": tuple(channels), "low": low, "high": high})

    return _with_changes(plan, drawn)


def with_permuted_factors(plan: Plan, seed: int, seen: Mapping[str, ValueRange]) -> Plan:
    """The plan with the same factors at other channels, drawn; ranges are those that follow.

    Args:
        plan: what was decided.
        seed: of the draw.
        seen: what calibration saw, of every activation that has factors.
    """
    draw = np.random.default_rng(seed)
    # Heads of the query that share one of the values share its factors here as well.
    exponents = {
        value: tuple(spread(draw.permutation(gathered(np.asarray(s.exponents), s.heads)), s.heads).tolist())
        for value, s in plan.scales.items()
    }
    after = {value: scaled(seen[value], drawn) for value, drawn in exponents.items()}

    def permuted(change: Change) -> Change:
        found = None if isinstance(change, Prefix) else after.get(change.value)
        if isinstance(change, Prefix) or found is None:
            return change
        if isinstance(change, Scale):
            return change.model_copy(
                update={"exponents": exponents[change.value], "low": found.low, "high": found.high}
            )
        return change.model_copy(update=_ends(found, change.channels))

    return _with_changes(plan, permuted)


def _with_changes(plan: Plan, of: Callable[[Change], Change]) -> Plan:
    def treated(treatment: Treatment) -> Treatment:
        return treatment.model_copy(update={"changes": tuple(map(of, treatment.changes))})

    return plan.with_treatments(map(treated, plan.treatments))
