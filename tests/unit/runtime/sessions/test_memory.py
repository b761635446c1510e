from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from spq_graph.runtime.sessions import memory


def test_what_the_process_takes_is_part_of_what_there_is() -> None:
    before = memory.resident()
    held = np.ones(1 << 25, dtype=np.uint8)
    after = memory.resident()
    assert before + held.nbytes // 2 < after <= memory.installed()
    assert memory.peak() >= held.nbytes
    assert memory.peak() < memory.installed()


def test_windows_is_asked_through_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    psutil = ModuleType("psutil")
    taken = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=3, peak_wset=5))
    vars(psutil).update(virtual_memory=lambda: SimpleNamespace(total=7), Process=lambda: taken)
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(sys, "platform", "win32")
    assert (memory.resident(), memory.peak(), memory.installed()) == (3, 5, 7)
