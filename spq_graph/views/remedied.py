"""What a plan does about spikes besides keeping sites, in words."""

from __future__ import annotations

from spq_graph.documents.plan import Plan


def remedies(plan: Plan) -> list[str]:
    """What each remedy that is applied does, and where; nothing of others."""
    return [said for said in (prefix(plan), smoothing(plan), branches(plan)) if said is not None]


def prefix(plan: Plan) -> str | None:
    """How many tokens every sequence follows; None where it follows none."""
    if plan.prefix is None:
        return None
    count = len(plan.prefix.tokens)
    return f"a prefix of {count} token{'s' if count > 1 else ''} ({' '.join(map(str, plan.prefix.tokens))})"


def smoothing(plan: Plan) -> str | None:
    """At how many activations channels are divided by powers of two; None where at none."""
    count = len(plan.scales)
    return f"smoothed channels at {count} of {_activations(plan)} activations" if count else None


def branches(plan: Plan) -> str | None:
    """How many activations have an outlier branch, and of how many channels; None where none has."""
    counts = [len(peel.channels) for peel in plan.peels.values()]
    if not counts:
        return None
    least, most = min(counts), max(counts)
    channels = f"{most} channels" if least == most else f"{least} to {most} channels"
    return f"outlier branches of {channels} at {len(counts)} of {_activations(plan)} activations"


def _activations(plan: Plan) -> int:
    return len({site.input for site in plan.sites})
