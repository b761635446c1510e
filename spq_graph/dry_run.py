"""Plan, bytes and expected time, and nothing written."""

from __future__ import annotations

import math
import time
from typing import Any

from spq_graph import artifact
from spq_graph.passes.graph import files_of
from spq_graph.pipeline import Request, opened
from spq_graph.progress import Steps
from spq_graph.variants import ROWS_ONCE, rows_of
from spq_graph.wording import duration, megabytes


def forecast(request: Request, steps: Steps) -> dict[str, Any]:
    """What `quantize` would do: sites by role, the cap, bytes at both ends, and time from one timed batch.

    Raises:
        SpqError: as `quantize`, for everything that shows before calibration.
    """
    artifact.check_out(request.out, force=request.force)
    with opened(
        request.source,
        steps,
        tokenizer=request.tokenizer,
        bos=request.bos,
        window=request.window,
        memory=request.memory,
        allow_no_glu=request.allow_no_glu,
    ) as bench:
        import numpy as np

        counted = [s for s in bench.found.sites if not s.left_alone(request.recipe.quantize_lm_head)]
        cap = math.floor(request.recipe.max_kept * len(counted))
        weights = sorted((s.shape[0] * s.shape[1] for s in counted), reverse=True)
        size = 4 if all(s.stored == "fp32" for s in counted) else 2
        source = sum(file.stat().st_size for file in files_of(bench.model))
        everywhere = source - sum(weights) * (size - 1)
        runner = bench.reference
        length = bench.sequence_length
        ids = np.zeros((runner.fixed_shape[0] or max(1, 1024 // length), length), dtype=np.int64)
        batch = [(ids, np.ones_like(ids))]
        list(runner.stream(batch))
        start = time.perf_counter()
        list(runner.stream(batch))
        per_token = (time.perf_counter() - start) / ids.size
    evaluations = 0 if request.recipe.spike_ratio else len(counted) // 2 * len(request.bits)
    tokens = request.recipe.calibration_tokens + evaluations * request.recipe.sensitivity_tokens
    text = request.max_eval_tokens or 0
    rows = len(rows_of(request.recipe)) * len(request.bits) + len(ROWS_ONCE)
    return {
        "source": request.source,
        "glu_blocks": len(bench.found.blocks),
        "sites": len(counted),
        "kept_at_most": 0 if request.recipe.spike_ratio else cap,
        "bits": list(request.bits),
        "source_mb": megabytes(source),
        "mb_quantized_everywhere": megabytes(everywhere),
        "mb_at_most": megabytes(everywhere + sum(weights[:cap]) * (size - 1)),
        "expected_time": duration(tokens * per_token * 1.2 + text * per_token * rows),
        "of_which_ladder": "depends on the text" if not text else duration(text * per_token * rows),
        "unmatched": len(bench.found.unmatched),
    }
