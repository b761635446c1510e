"""Which sites cost most, before each of them is measured. Pure: measuring is passed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from spq_graph.decisions.branches import Branches, reach
from spq_graph.decisions.choices import Choice
from spq_graph.terms.precision import Precision


def costliest(
    sites: Sequence[Choice], most: int, branches: Branches, kl_of: Callable[[Mapping[str, Precision]], float]
) -> list[Choice]:
    """At most so many sites, the costliest first; all of them, as they are, where there are no more.

    What all sites of a role cost together is measured, and shared among them in proportion to how far the quantizer of
    each reaches: some passes instead of one for every site.

    Args:
        sites: in integers, with ranges.
        most: how many.
        branches: outlier branches in force.
        kl_of: KL with these sites alone in these precisions, nats a token, on few tokens.
    """
    if len(sites) <= most:
        return list(sites)
    cost: dict[str, float] = {}
    for role in dict.fromkeys(choice.site.role for choice in sites):
        some = {choice.site.key: choice for choice in sites if choice.site.role is role}
        reaches = {key: reach(choice, branches) for key, choice in some.items()}
        kl, whole = kl_of({key: choice.precision for key, choice in some.items()}), sum(reaches.values()) or 1.0
        cost |= {key: kl * reached / whole for key, reached in reaches.items()}
    return sorted(sites, key=lambda c: (-cost[c.site.key], c.site.key))[:most]
