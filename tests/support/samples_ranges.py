"""Ranges and a drawing to go with the sample plan: a spike on the first token of the kept sites."""

from __future__ import annotations

import numpy as np

from spq_graph.documents.drawing import Box, LayerDrawing
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.value_range import ValueRange
from tests.support.samples import HOSTILE


def sample_ranges(plan: Plan, *, length: int = 64) -> Ranges:
    """Two sequences in which every measured site's input is at its median but for its peak."""
    ranges = Ranges(plan.model.digest, tokens=2 * length, sequences=2)
    ids = np.arange(2 * length).reshape(2, length) % 50 + 3
    ids[:, 0] = 1
    for site in plan.sites:
        seen = site.evidence
        if seen.max is None or seen.median is None:
            continue
        maxima = np.full((2, length), seen.median, dtype=np.float32)
        maxima[1, seen.position or 0] = seen.max
        channels = np.ones(site.shape[0], dtype=np.float32)
        ranges.add(site.input, ValueRange.observe(-maxima, maxima, (-channels, channels), ids, np.ones_like(ids)))
    return ranges


def sample_drawing(*, hostile: bool = False) -> LayerDrawing:
    """A layer of one product, before and after."""
    name = HOSTILE if hostile else "node_norm"
    stream = Box(kind="stream", title="hidden states", detail="from node_add", nodes=["node_add"], count=1, reads=[])
    norm = Box(kind="other", title="normalization", detail=f"Pow, {name}", nodes=[name], count=14, reads=[0])
    product = Box(kind="site", title=name, detail="MatMul 160 × 160\nfp32", nodes=["node_q"], count=1, reads=[1])
    inserted = Box(
        kind="quantizer",
        title="QuantizeLinear → DequantizeLinear",
        detail="uint8, scale 0.1, zero point 128",
        nodes=["q", "dq"],
        count=2,
        reads=[1],
    )
    behind = product.model_copy(update={"detail": "MatMul 160 × 160\nint8 weight → DQ", "reads": [2]})
    last = Box(kind="other", title="residual", detail="Add", nodes=["node_end"], count=1, reads=[0, 2])
    return LayerDrawing(
        layer=1,
        before=[stream, norm, product, last],
        after=[stream, norm, inserted, behind, last.model_copy(update={"reads": [0, 3]})],
    )
