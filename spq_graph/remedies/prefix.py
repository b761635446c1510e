"""A prefix of tokens: which of them might hold what spikes, by what calibration saw. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from spq_graph.documents.value_range import ValueRange

# Tokens that stand out less are not what makes a range wide.
LEAST_RATIO = 8.0


def spiking_tokens(seen: Iterable[ValueRange], most: int) -> list[int]:
    """The tokens at which activations are the largest, beside what is usual of the same activation; that one first.

    A token that attention comes to rest at spikes where it stands first (Massive Activations, arXiv 2402.17762). QFeP
    (arXiv 2405.14428) takes the same measure of them.

    Args:
        seen: what calibration saw, by activation.
        most: so many of them at most.
    """
    ratios: dict[int, float] = {}
    for value in (v for v in seen if v.profile is not None and v.median > 0):
        assert value.profile is not None
        for peak in value.profile.leaders:
            ratios[peak.token] = max(ratios.get(peak.token, 0.0), peak.value / value.median)
    found = sorted((token for token, ratio in ratios.items() if ratio >= LEAST_RATIO), key=lambda t: (-ratios[t], t))
    return found[:most]
