"""Plan, bytes and expected time, and nothing written."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from spq_graph.decisions.variants import ROWS_ONCE, rows_of
from spq_graph.jobs.order import Order
from spq_graph.passes.files.read import size_of
from spq_graph.terms.precision import Precision
from spq_graph.views.words import duration, megabytes
from spq_graph.workbench.data import Given
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.streams import run_once
from spq_graph.workbench.workbench import Workbench


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `quantize` would do.

    Attributes:
        source: as it was named.
        glu_blocks: how many there are.
        sites: those that count in shares.
        kept_at_most: the cap on kept ones; 0 where they are chosen by their ratio.
        bits: every width that would be decided at.
        source_bytes: of the model's files.
        bytes_everywhere, bytes_at_most: of the artifact with no site kept, and with the largest ones up to the cap.
        seconds: of calibration, decisions and the ladder together.
        ladder_seconds: of the ladder, 0 without one; None where its text was not limited, so that nothing tells.
        unmatched: products that are no sites.
    """

    source: str
    glu_blocks: int
    sites: int
    kept_at_most: int
    bits: tuple[int, ...]
    source_bytes: int
    bytes_everywhere: int
    bytes_at_most: int
    seconds: float
    ladder_seconds: float | None
    unmatched: int

    def to_dict(self) -> dict[str, Any]:
        """What `quantize --dry-run --json` prints."""
        ladder = self.ladder_seconds
        return {
            "source": self.source,
            "glu_blocks": self.glu_blocks,
            "sites": self.sites,
            "kept_at_most": self.kept_at_most,
            "bits": list(self.bits),
            "source_mb": megabytes(self.source_bytes),
            "mb_quantized_everywhere": megabytes(self.bytes_everywhere),
            "mb_at_most": megabytes(self.bytes_at_most),
            "expected_time": duration(self.seconds),
            "of_which_ladder": duration(ladder) if ladder is not None else "depends on the text",
            "unmatched": self.unmatched,
        }


def forecast(order: Order, *, steps: Steps | None = None) -> Forecast:
    """What `quantize` would do: sites, the cap, bytes at both ends, and time from one timed batch.

    Raises:
        SpqError: as `quantize`, for everything that shows before calibration.
    """
    recipe = order.recipe
    with order.begun(steps or Steps()) as (bench, given):
        counted = [s for s in bench.found.sites if not s.left_alone(recipe.quantize_lm_head)]
        cap = math.floor(recipe.max_kept * len(counted))
        weights = sorted((s.shape[0] * s.shape[1] for s in counted), reverse=True)
        size = 4 if all(bench.stored[s.key] is Precision.FP32 for s in counted) else 2
        source = size_of(bench.model)
        everywhere = source - sum(weights) * (size - 1)
        measured, per_token = bench.logits.output is not None, _seconds_per_token(bench, given)
    widths, limit = order.widths, order.data.max_eval_tokens if order.ladder and measured else 0
    evaluations = 0 if recipe.spike_ratio or not measured else len(counted) // 2 * len(widths)
    tokens = recipe.calibration_tokens + evaluations * recipe.sensitivity_tokens
    rows = len(rows_of(recipe)) * len(widths) + len(ROWS_ONCE)
    ladder = (limit or 0) * per_token * rows
    return Forecast(
        source=order.opening.name,
        glu_blocks=len(bench.found.blocks),
        sites=len(counted),
        kept_at_most=0 if recipe.spike_ratio else cap,
        bits=widths,
        source_bytes=source,
        bytes_everywhere=everywhere,
        bytes_at_most=everywhere + sum(weights[:cap]) * (size - 1),
        seconds=tokens * per_token * 1.2 + ladder,
        ladder_seconds=ladder if limit is not None else None,
        unmatched=len(bench.found.unmatched),
    )


def _seconds_per_token(bench: Workbench, given: Given) -> float:
    """Of one batch of the floating-point model, once it is warm; as long as its data, which may be shorter than it."""
    runner = bench.reference
    length = given.calibration.ids.shape[1] if given.calibration is not None else bench.sequence_length
    ids = np.zeros((runner.fixed_shape[0] or max(1, 1024 // length), length), dtype=np.int64)
    run_once(runner, ids, np.ones_like(ids))
    start = time.perf_counter()
    run_once(runner, ids, np.ones_like(ids))
    return (time.perf_counter() - start) / ids.size
