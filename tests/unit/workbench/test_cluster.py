"""Work that is spread over the workers of a cluster comes back in order, whatever becomes of some of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("distributed")

from spq_graph.terms.errors import DataError
from spq_graph.workbench import introduced
from spq_graph.workbench.cluster import Cluster, connected
from tests.support.clusters import cluster as started

# What workers are to do is a function inside of a test: they could not import it, so that it travels as a whole.


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Any]:
    with started(2) as made:
        yield made


@pytest.fixture
def remarks() -> list[str]:
    return []


@pytest.fixture
def cluster(scheduler: Any, remarks: list[str]) -> Iterator[Cluster]:
    with connected(scheduler.scheduler_address, remarks.append) as found:
        yield found


def test_what_comes_of_shares_is_in_their_order(cluster: Cluster) -> None:
    def late_first(share: int) -> int:
        time.sleep(0.3 if share == 0 else 0.0)
        return 10 * share

    assert list(cluster.spread(late_first, range(5))) == [0, 10, 20, 30, 40]


def test_a_worker_has_one_share_at_a_time(cluster: Cluster, tmp_path: Path) -> None:
    folder = str(tmp_path)

    def beside(share: int) -> int:
        Path(folder, f"at-{share}").touch()
        time.sleep(0.1)
        count = len(list(Path(folder).glob("at-*")))
        Path(folder, f"at-{share}").unlink()
        return count

    assert max(cluster.spread(beside, range(8))) <= 2


def test_a_share_that_fails_once_is_given_out_again(cluster: Cluster, tmp_path: Path) -> None:
    mark = str(tmp_path / "tried")

    def second_time(share: int) -> int:
        try:
            os.mkdir(mark)  # noqa: PTH102 - a worker's function holds what travels easily
        except FileExistsError:
            return share
        raise OSError("the file system is away")

    assert list(cluster.spread(second_time, [7])) == [7]


def test_a_share_that_fails_everywhere_ends_with_its_own_error(cluster: Cluster) -> None:
    def broken(share: int) -> int:
        raise DataError("these data are broken", where=f"share {share}", remedy="give others")

    with pytest.raises(DataError) as caught:
        list(cluster.spread(broken, [3]))
    assert (caught.value.where, caught.value.remedy) == ("share 3", "give others")
    assert caught.value.__cause__ is None


def test_who_stops_takes_back_what_was_given_out(cluster: Cluster, scheduler: Any) -> None:
    def slow(share: int) -> int:
        time.sleep(0.0 if share == 0 else 1.0)
        return share

    spread = cluster.spread(slow, range(50))
    assert next(spread) == 0
    spread.close()
    deadline = time.monotonic() + 5
    while scheduler.scheduler.tasks and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not scheduler.scheduler.tasks


def test_other_instructions_are_told(
    cluster: Cluster, remarks: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(introduced, "instruction_sets", lambda: [threading.current_thread().name])
    cluster.check(tmp_path)
    assert len(remarks) == 1
    assert all(address in remarks[0] for address in cluster.workers())


def test_the_same_instructions_are_not(cluster: Cluster, remarks: list[str], tmp_path: Path) -> None:
    cluster.check(tmp_path)
    assert remarks == []


def test_where_the_work_is_done(cluster: Cluster) -> None:
    assert cluster.words == ", on 2 workers"
