"""Refusals of clusters that cannot share the work, each made and put right as it says."""

from __future__ import annotations

import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("distributed")

from spq_graph.passes.files.read import digest_of
from spq_graph.workbench import cluster as module
from spq_graph.workbench import introduced
from spq_graph.workbench.cluster import connected
from spq_graph.workbench.introduced import introduce
from spq_graph.workbench.placed import Placed
from spq_graph.workbench.shared_calibration import _opened
from tests.refusals.conftest import Made
from tests.support.clusters import cluster
from tests.support.command import done
from tests.support.following import Told

follows = pytest.mark.follows


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    with cluster(1) as made:
        yield made


@pytest.fixture
def calibrate(made: Made, tmp_path: Path) -> list[object]:
    return ["calibrate", made.model, "-o", tmp_path / "ranges", "--calibration", made.data, "--dask"]


def in_workers(there: Callable[..., Any], here: Callable[..., Any]) -> Callable[..., Any]:
    """A function that does one thing in the main thread, and another where workers run that are threads."""

    def either(*arguments: object) -> Any:
        return (here if threading.current_thread() is threading.main_thread() else there)(*arguments)

    return either


@follows("spq_graph/workbench/cluster.py:connected", "is not installed")
def test_without_distributed(
    refusal: Told, calibrate: list[object], workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "find_spec", lambda _: None)
        refusal.command(*calibrate, workers.scheduler_address)
    assert refusal.error.remedy == "pip install 'spq-graph[dask]'"
    done(*calibrate, workers.scheduler_address)


@pytest.mark.parametrize("address", ["nowhere", "tcp://127.0.0.1:1", "http://127.0.0.1:80"])
@follows("spq_graph/workbench/cluster.py:_reached")
def test_no_scheduler(
    refusal: Told, calibrate: list[object], workers: Any, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "ANSWERS", 0.5)
        begun = time.monotonic()
        refusal.command(*calibrate, address)
        assert time.monotonic() - begun < 10
    assert "as tcp://HOST:8786" in refusal.error.remedy
    assert workers.scheduler_address.startswith("tcp://")
    done(*calibrate, workers.scheduler_address)


@follows("spq_graph/workbench/cluster.py:Cluster.check", "has no workers")
def test_no_workers(refusal: Told, calibrate: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWERS", 1.0)
    with cluster(0) as empty:
        refusal.command(*calibrate, empty.scheduler_address)
        assert refusal.error.remedy == f"start some: `dask worker {empty.scheduler_address}`"
        empty.scale(1)
        empty.wait_for_workers(1)
        done(*calibrate, empty.scheduler_address)


@follows("spq_graph/workbench/cluster.py:Cluster.check", "does not see")
def test_a_place_that_workers_do_not_see(
    refusal: Told, calibrate: list[object], made: Made, workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    monkeypatch.setattr(module, "introduce", lambda place: replace(introduce(place), sees=shared in place.parents))
    refusal.command(*calibrate, workers.scheduler_address)
    assert "Workers read the model from a path that all machines share" in refusal.error.remedy
    shared.mkdir()
    shutil.copy(made.model, shared)
    done(calibrate[0], shared / "decoder.onnx", *calibrate[2:], workers.scheduler_address)


@follows("spq_graph/workbench/cluster.py:_refuse_other", "cannot import")
def test_a_worker_without_this_program(
    refusal: Told, calibrate: list[object], workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'spq_graph'")

    with monkeypatch.context() as patch:
        patch.setattr(introduced, "environment", in_workers(absent, introduced.environment))
        refusal.command(*calibrate, workers.scheduler_address)
    assert refusal.error.remedy.startswith("pip install 'spq-graph[cpu,dask]==")
    done(*calibrate, workers.scheduler_address)


@pytest.mark.parametrize("package", ["spq-graph", "onnxruntime"])
@follows("spq_graph/workbench/cluster.py:_refuse_other", "on this worker, and")
def test_a_worker_of_another_version(
    refusal: Told, calibrate: list[object], workers: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = introduced.environment()
    with monkeypatch.context() as patch:
        patch.setattr(introduced, "environment", in_workers(lambda: here | {package: "0.0.1"}, lambda: here))
        refusal.command(*calibrate, workers.scheduler_address)
    *_, install, which = shlex.split(refusal.error.remedy)
    assert (install, which) == ("install", f"{package}=={here[package]}")
    assert refusal.error.where.startswith("tcp://")
    done(*calibrate, workers.scheduler_address)


@follows("spq_graph/workbench/placed.py:Placed.refuse_other")
def test_another_model_at_the_same_path(refusal: Told, made: Made) -> None:
    meant = Placed(made.model, digest_of(made.model), None)
    with refusal:
        _opened(replace(meant, digest="sha256:of another"), "tcp://worker:1")
    assert refusal.error.where == f"tcp://worker:1, {made.model}"
    assert _opened(meant, "tcp://worker:1").digest == meant.digest


def slow(share: int) -> int:
    time.sleep(0.6)
    return share


@follows("spq_graph/workbench/cluster.py:Cluster._lost")
def test_a_scheduler_that_is_gone(refusal: Told, calibrate: list[object]) -> None:
    with cluster(1) as lost, connected(lost.scheduler_address, lambda _: None) as found, refusal:
        for _ in found.spread(slow, range(3)):
            lost.close()
    with cluster(1) as again:
        done(*calibrate, again.scheduler_address)


@follows("spq_graph/workbench/cluster.py:Cluster._next", "no worker is left")
def test_the_last_worker_is_gone(refusal: Told, calibrate: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    with cluster(1) as left:
        with monkeypatch.context() as patch:
            patch.setattr(module, "_LOOKS", 0.1)
            patch.setattr(module, "PATIENCE", 0.5)
            with connected(left.scheduler_address, told.append) as found, refusal:
                for _ in found.spread(slow, range(3)):
                    left.scale(0)
        assert told == ["no worker is left: waiting 0 seconds for another"]
        left.scale(1)
        left.wait_for_workers(1)
        done(*calibrate, left.scheduler_address)


@follows("spq_graph/workbench/cluster.py:Cluster._result", "died over it")
def test_a_share_that_kills_every_worker(refusal: Told, calibrate: list[object], workers: Any) -> None:
    with (
        cluster(1, processes=True, allowed_failures=0) as deadly,
        connected(deadly.scheduler_address, lambda _: None) as found,
        refusal,
    ):
        list(found.spread(os._exit, [1]))
    assert "lower --memory-limit" in refusal.error.remedy
    done(*calibrate, workers.scheduler_address, "--memory-limit", 1)
