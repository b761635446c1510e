"""A process that stands beside others of its kind takes no more than its part of the machine."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")

from spq_graph.runtime.sessions import cores as module
from spq_graph.runtime.sessions.cores import cores, share_machine, threads_of
from spq_graph.runtime.sessions.opening import session_options


@pytest.fixture(autouse=True)
def _unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_share", module._Share())


def test_without_a_limit_sessions_take_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert (cores(), threads_of(0), threads_of(3)) == (6, 0, 3)


@pytest.mark.parametrize(("most", "has"), [(2, 2), (16, 6)])
def test_a_limit_holds_for_who_did_not_say(most: int, has: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    share_machine(most)
    assert (cores(), threads_of(0), threads_of(3)) == (has, has, 3)
    assert session_options().intra_op_num_threads == has
