"""The ladder: the source is run once whatever the rows, and every row says the same however few fit side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.decisions.variants import variants, weight_only
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.report import Rung
from spq_graph.runtime.sessions.segmented import Batch
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.rows import EVERYWHERE, FP32, SPIKE_AWARE, WEIGHT_ONLY, Extent
from spq_graph.workbench import ladder
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import make_plan
from tests.support.decoders import random_ids, write_decoder

IDS = random_ids(96, 32)
TEXT = Sequences(IDS, np.ones_like(IDS), 0, "text")


def measured(path: Path, extent: Extent) -> tuple[list[Rung], int]:
    """The ladder, and how many batches of the text the source was run on for its sake."""
    ran: list[Batch] = []
    with Opening(path).open() as bench:
        plan = make_plan(bench, Recipe(spike_ratio=50.0), 8, bench.calibrate(TEXT), None)
        rows = [*variants(plan, bench.stored, extent), weight_only(plan)]
        runner = bench.runner

        def stream(batches: Sequence[Batch], columns: int | None = None) -> Iterator[Any]:
            for batch in batches:
                ran.extend([batch] * (batch[0].shape[1] == IDS.shape[1]))  # not what only asks for the form of logits
                yield runner.logits(*batch)

        with mock.patch.object(runner, "stream", stream):
            found = ladder.measure_ladder(bench, rows, TEXT, {})
    return found, len(ran)


def figures(rung: Rung) -> dict[str, Any]:
    """All of a row but its size, in which the name of its file has a part."""
    return rung.model_dump(exclude={"bytes"})


def test_the_source_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_decoder(tmp_path / "model.onnx", layers=2, spikes={1: 1000.0})
    beside, once = measured(path, Extent.FULL)
    monkeypatch.setattr(ladder, "SESSION_BYTES", 1)
    alone, again = measured(path, Extent.FULL)
    assert len(beside) > 8
    assert again == once == 3  # batches of the text
    assert [figures(rung) for rung in alone] == [figures(rung) for rung in beside]


def test_the_short_ladder_has_what_is_decided_between(tmp_path: Path) -> None:
    path = write_decoder(tmp_path / "model.onnx", layers=2, spikes={1: 1000.0})
    short, _ = measured(path, Extent.SHORT)
    assert [rung.id for rung in short] == [FP32, EVERYWHERE, SPIKE_AWARE, WEIGHT_ONLY]
    full, _ = measured(path, Extent.FULL)
    of = {rung.id: figures(rung) for rung in full}
    assert [of[rung.id] for rung in short] == [figures(rung) for rung in short]
