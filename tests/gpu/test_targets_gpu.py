"""The targets with a GPU: what ran there is held against the plan, and its logits against what the plan means."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.runtime.proof.held import check_executed, execute_on, runner_on, why_absent
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES, Target
from tests.numeric.test_targets import FEEDS, SHAPE, TOLERANCE, difference, planned
from tests.support.decoder_graphs import decoder
from tests.support.fake_quant import fake_quant_logits
from tests.support.inserting import applied

CASES: list[tuple[Target, Precision]] = [
    (target, precision)
    for target in ("cuda", "tensorrt")
    for precision in (Precision.INT8, Precision.FP8_E4M3, Precision.FP16, Precision.BF16)
]


@pytest.mark.parametrize(("target", "down"), CASES)
def test_what_runs_is_what_was_planned(tmp_path: Path, target: Target, down: Precision) -> None:
    profile = PROFILES[target]
    if (absent := why_absent(profile)) is not None:
        pytest.skip(absent)
    path = tmp_path / "model.onnx"
    onnx.save(decoder(SHAPE, naming="dynamo"), path)
    plan = planned(path, target, down)
    made = applied(path, plan)
    check_executed(execute_on(profile, made, FEEDS["input_ids"][:1]), plan, str(made))
    logits = runner_on(profile, made).logits(FEEDS["input_ids"], FEEDS["attention_mask"])
    # Tensor cores sum in another order, and TF32 or half-precision sums are theirs to choose.
    assert difference(logits, fake_quant_logits(path, plan, FEEDS)) < 5 * TOLERANCE
