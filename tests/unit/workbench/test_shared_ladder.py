"""A ladder whose rows a cluster shares says what one process says of every one, in the same order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("distributed")

from spq_graph.decisions.variants import variants, weight_only
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.report import Rung
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.rows import SPIKE_AWARE, Extent
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import make_plan
from spq_graph.workbench.shared_ladder import measure_rows
from spq_graph.workbench.steps import Steps
from tests.support.clusters import cluster
from tests.support.decoders import random_ids, write_decoder

IDS = random_ids(24, 32)
TEXT = Sequences(IDS, np.ones_like(IDS), 0, "text")


def measured(path: Path, address: str | None, *, delivers: bool, remarks: list[str]) -> list[Rung]:
    """The ladder; `delivers` where a row is built already."""
    with Opening(path, dask=address).open(Steps(remark=remarks.append)) as bench:
        plan = make_plan(bench, Recipe(spike_ratio=50.0), 8, bench.calibrate(TEXT), None)
        rows = [*variants(plan, bench.stored, Extent.FULL), weight_only(plan)]
        ready = {(SPIKE_AWARE, 8): bench.build(plan, bench.work / "variant-out0.onnx")} if delivers else {}
        return measure_rows(bench, rows, TEXT, ready)


@pytest.mark.parametrize("delivers", [True, False])
def test_rows_are_those_of_one_process(tmp_path: Path, delivers: bool) -> None:
    path, remarks = write_decoder(tmp_path / "model.onnx", layers=2, spikes={1: 1000.0}), list[str]()
    alone = measured(path, None, delivers=delivers, remarks=remarks)
    with cluster(2) as made:
        shared = measured(path, made.scheduler_address, delivers=delivers, remarks=remarks)
    assert shared == alone
    assert len(shared) > 8
    assert remarks == []
