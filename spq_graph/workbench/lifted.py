"""A graph that was lifted from an old opset gives what it gave, run on both sides before anything is made of it."""

from __future__ import annotations

import numpy as np

from spq_graph.passes.base.wellformed import EXPORT_NEWER
from spq_graph.passes.pieces.split import split
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.terms.errors import GraphError, SourceError
from spq_graph.workbench.workbench import Workbench

_LENGTH = 16
_WITHIN = 1e-4  # of the largest logit: the same kernels run, in another order at most


def refuse_changed(bench: Workbench) -> None:
    """Run a few tokens through the file and through what was made of it.

    Raises:
        GraphError: the logits differ, or one of the two does not run.
    """
    prepared = bench.prepared
    if not prepared.runs:
        return
    batch, length = bench.decoder.fixed_shape
    shape = (batch or 1, length or min(_LENGTH, bench.sequence_length))
    ids = np.resize(np.arange(bench.decoder.vocabulary or _LENGTH, dtype=np.int64), shape)
    batches = [(ids, np.ones_like(ids))]
    [before] = bench.reference.stream(batches)
    try:
        [after] = SegmentedRunner(split(prepared.copy(), bench.model, bench.memory)).stream(batches)
    except (SourceError, GraphError) as cause:
        raise GraphError(
            f"lifted from opset {prepared.lifted_from}, the graph does not run: {cause.what}",
            where=bench.source.origin,
            remedy=EXPORT_NEWER,
        ) from cause
    largest = float(np.nanmax(np.abs(before), initial=1.0))
    if not np.allclose(after, before, rtol=0.0, atol=_WITHIN * largest, equal_nan=True):
        raise GraphError(
            f"lifted from opset {prepared.lifted_from}, the graph gives other logits: they differ by "
            f"{float(np.nanmax(np.abs(after - before))):.3g} where the largest is {largest:.3g}",
            where=bench.source.origin,
            remedy=EXPORT_NEWER,
        )
