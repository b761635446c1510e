"""Which tokens a prefix might have, by what calibration saw of each."""

from __future__ import annotations

import numpy as np

from spq_graph.documents.value_range import ValueRange
from spq_graph.remedies.prefix import spiking_tokens


def seen(spikes: dict[int, float]) -> ValueRange:
    """A row of tokens 0 to 99 whose largest elements are 1, but for these."""
    maxima = np.ones((1, 100), np.float32)
    for token, size in spikes.items():
        maxima[0, token] = size
    ids, mask = np.arange(100)[None], np.ones((1, 100), np.int64)
    channels = np.full(4, maxima.max(), np.float32)
    return ValueRange.observe(-maxima, maxima, (-channels, channels), ids, mask)


def test_tokens_at_which_something_spikes_the_largest_first() -> None:
    values = [seen({7: 50.0, 3: 20.0}), seen({3: 900.0, 5: 2.0}), seen({})]
    assert spiking_tokens(values, 8) == [3, 7]
    assert spiking_tokens(values, 1) == [3]
    assert spiking_tokens([seen({5: 2.0})], 8) == []


def test_of_what_has_no_positions_nothing_is_told() -> None:
    value = seen({7: 50.0})
    value.profile = None
    assert spiking_tokens([value], 8) == []
