"""A plan with other treatments than its own, for the rows of a ladder: fewer of them, or at places drawn. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from spq_graph.documents.changes import Change, Peel, Prefix, Scale
from spq_graph.documents.plan import Plan
from spq_graph.documents.treatment import Treatment
from spq_graph.documents.value_range import ValueRange
from spq_graph.remedies.smooth import scaled
from spq_graph.terms.rows import RowId, RowKind


def retreated(plan: Plan, row: RowId, seen: Mapping[str, ValueRange]) -> Plan:
    """The plan as a row has it that leaves a remedy out, or stands against one.

    Args:
        plan: what was decided.
        row: `spike_aware` without a remedy, or a control of one.
        seen: what calibration saw, of every activation that has factors, where these are to be exchanged.
    """
    if row.kind is RowKind.CONTROL_CHANNELS:
        return at_random_channels(plan, row.seed or 0)
    if row.kind is RowKind.CONTROL_FACTORS:
        return with_permuted_factors(plan, row.seed or 0, seen)
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
    exponents = {value: tuple(draw.permutation(s.exponents).tolist()) for value, s in plan.scales.items()}
    after = {value: scaled(seen[value], drawn) for value, drawn in exponents.items()}

    def permuted(change: Change) -> Change:
        found = None if isinstance(change, Prefix) else after.get(change.value)
        if isinstance(change, Prefix) or found is None:
            return change
        if isinstance(change, Scale):
            return change.model_copy(
                update={"exponents": exponents[change.value], "low": found.low, "high": found.high}
            )
        low, high = (np.delete(ends, change.channels) for ends in (found.channel_low, found.channel_high))
        return change.model_copy(update={"low": float(low.min()), "high": float(high.max())})

    return _with_changes(plan, permuted)


def _with_changes(plan: Plan, of: Callable[[Change], Change]) -> Plan:
    def treated(treatment: Treatment) -> Treatment:
        return treatment.model_copy(update={"changes": tuple(map(of, treatment.changes))})

    return plan.with_treatments(map(treated, plan.treatments))
