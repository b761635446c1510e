"""Work that a Dask cluster shares gives the bytes of one process, also where a worker dies over it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

pytest.importorskip("onnxruntime")
pytest.importorskip("distributed")

from tests.support.clusters import cluster
from tests.support.command import done, spq
from tests.support.decoders import write_decoder, write_ids
from tests.support.halves import rewritten

UP, DOWN = "layers.1.mlp.up_proj", "layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    """Two processes, each of which its nanny starts again where it dies."""
    with cluster(2, processes=True) as made:
        yield made


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cluster")
    write_decoder(folder / "model.onnx", layers=2, spikes={1: 1000.0}, cache=True)
    infinite = {f"layers.1.mlp.{name}_proj.weight": 1e25 for name in ("gate", "up")}
    rewritten(write_decoder(folder / "infinite.onnx", layers=2), into=TensorProto.FLOAT, factors=infinite)
    rewritten(write_decoder(folder / "half.onnx", layers=2), factors={f"{UP}.weight": 2e4, f"{DOWN}.weight": 5e-5})
    write_ids(folder / "ids.npz", rows=600, length=48)
    write_ids(folder / "text.npz", rows=64, length=48, seed=1)
    return folder


def calibrate(world: Path, name: str, *more: object) -> bytes:
    """What `calibrate` writes, all of it."""
    out = world / name
    done("calibrate", world / "model.onnx", "-o", out, "--calibration", world / "ids.npz", *more)
    return out.with_suffix(".json").read_bytes() + out.with_suffix(".safetensors").read_bytes()


@contextmanager
def killing_one(workers: Any) -> Iterator[list[int]]:
    """A block in which the first worker that has work is killed; the ids of those that were."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not over.is_set() and not killed:
            busy = [state.name for state in workers.scheduler.workers.values() if state.processing]
            if busy:
                killed.append(workers.workers[busy[0]].pid)
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_ranges_are_those_of_one_process_even_where_a_worker_is_killed(workers: Any, world: Path) -> None:
    alone, address = calibrate(world, "alone"), workers.scheduler_address
    assert calibrate(world, "shared", "--dask", address) == alone
    with killing_one(workers) as killed:
        assert calibrate(world, "with-a-death", "--dask", address) == alone
    assert killed


def test_all_of_out_is_that_of_one_process(workers: Any, world: Path) -> None:
    """Ranges, and what is decided from them; and of the ladder every figure of every row."""
    given = ["--calibration", world / "ids.npz", "--calibration-tokens", 4096, "--text", world / "text.npz"]
    found = []
    for name, more in (("out", []), ("out-shared", ["--dask", workers.scheduler_address])):
        done("quantize", world / "model.onnx", "-o", world / name, *given, *more)
        files = [(world / name / file).read_bytes() for file in ("ranges.safetensors", "plan.json", "model.onnx")]
        found.append([*files, json.loads((world / name / "report.json").read_text())["ladder"]])
    assert len(found[0][-1]) > 4
    assert found[0] == found[1]


def test_what_is_decided_is_that_of_one_process_where_a_worker_is_killed(workers: Any, world: Path) -> None:
    """All sites are measured alone; the ranges are there, so that the worker dies over the decision."""
    model, ranges = world / "deep.onnx", world / "deep.json"
    write_decoder(model, layers=3, spikes={1: 1000.0})
    (world / "all.toml").write_text('candidate_ratio = 0.0\nkl_budget = 1e-6\nremedies = {peel = {use = "never"}}\n')
    measured = ["--calibration", world / "ids.npz"]
    done("calibrate", model, "-o", ranges, *measured)
    given = [
        "quantize",
        model,
        *measured,
        "--ranges",
        ranges,
        "--recipe",
        world / "all.toml",
        "--no-eval",
        "--no-bench",
    ]
    done(*given, "-o", world / "deep")
    with killing_one(workers) as killed:
        done(*given, "-o", world / "deep-shared", "--dask", workers.scheduler_address)
    assert killed
    files = ("plan.json", "model.onnx")
    assert [(world / "deep-shared" / name).read_bytes() for name in files] == [
        (world / "deep" / name).read_bytes() for name in files
    ]


@pytest.mark.parametrize("name", ["infinite", "half"])
def test_activations_that_nothing_can_be_measured_on_are_told_as_by_one_process(
    workers: Any, world: Path, name: str
) -> None:
    """What is not finite on a worker, and what float16 does not hold on any of them."""
    given = ["calibrate", world / f"{name}.onnx", "-o", world / name, "--calibration", world / "ids.npz"]
    alone, shared = spq(*given), spq(*given, "--dask", workers.scheduler_address)
    assert (shared.code, shared.out) == (alone.code, alone.out) == (3, "")
    assert shared.err.partition("error:")[2] == alone.err.partition("error:")[2]
    assert DOWN in shared.err
