"""lm-evaluation-harness, on local files, finds no difference between a model and what was made of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")
pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an extra: pip install 'spq-graph[eval]'")

from spq_graph.models.source import embedded_text
from tests.support.command import done
from tests.support.harness_tasks import CHOICES, write_rows, write_task

pytestmark = pytest.mark.slow
QUESTIONS = 200


def questions(text: str) -> list[dict[str, Any]]:
    """What follows on a stretch of the text: four words that do, or those of three other places."""
    said, random = text.split(), np.random.default_rng(0)
    starts = random.choice(len(said) - 40, (QUESTIONS, 4), replace=False) + 32
    return [
        {
            "query": " ".join(said[places[0] - 32 : places[0]]),
            "choices": [" ".join(said[at : at + 4]) for at in np.roll(places, number % 4)],
            "gold": number % 4,
        }
        for number, places in enumerate(starts)
    ]


def test_out_is_as_accurate_as_its_source_within_the_error_of_that(exports: None, tmp_path: Path) -> None:
    text = embedded_text("reference")
    assert text is not None
    rows = write_rows(tmp_path / "rows.jsonl", questions(text.read_text(encoding="utf-8")))
    task = write_task(tmp_path / "what_follows.yaml", rows, CHOICES)
    exported, out = tmp_path / "exported", tmp_path / "out"
    done("export", "reference", "-o", exported)
    done("quantize", exported, "-o", out, "--calibration-tokens", 2048, "--no-eval")
    source, made = (done("eval", path, "--tasks", task, "--json").json["tasks"][task.stem] for path in (exported, out))
    assert source["n"] == made["n"] == QUESTIONS
    share, error = source["accuracy"], source["accuracy_stderr"]
    assert error == pytest.approx(math.sqrt(share * (1 - share) / (QUESTIONS - 1)))
    assert share > 0.25 + 3 * error, "guessing would be as good, so nothing could be lost"
    assert abs(made["accuracy"] - share) <= error
