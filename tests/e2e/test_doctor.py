"""What `doctor` says of every target, by running it, and what it warns of."""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.documents.examination import Gpu
from spq_graph.jobs import doctor
from spq_graph.runtime.proof import health
from spq_graph.runtime.sessions.executed import Executed
from spq_graph.runtime.sessions.openvino import is_here
from spq_graph.terms.targets import PROFILES
from tests.support.command import done


def test_every_target_says_what_runs_or_why_not() -> None:
    found: dict[str, Any] = done("doctor", "--json").json
    assert set(found["targets"]) == set(found["absent"]) == set(PROFILES)
    for target, kernels in found["targets"].items():
        profile = PROFILES[target]
        assert not [kernel for kernel in kernels.values() if kernel.startswith("error")]
        for precision, kernel in kernels.items():
            assert kernel.startswith("unsupported: ") is (precision not in profile.forms)
            assert found["absent"][target] is None or kernel.startswith(("unsupported: ", "not executed here; written"))
    assert found["targets"]["portable"]["fp8_e4m3"] == "function"
    if is_here():
        assert found["targets"]["openvino"]["int8"] == "FullyConnected_int8"
        assert found["targets"]["openvino"]["w8a16"] == "FullyConnected_float_weights_int8"
    assert found["warnings"] in ([], [doctor.SATURATES])


def test_a_processor_that_saturates_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(*_: Any, **__: Any) -> tuple[Executed, Any]:
        return Executed(kernels={"product": "MatMulIntegerToFloat"}), np.full((4, 64), 32.0)

    monkeypatch.setattr(health, "kernels_of", halved)
    assert doctor.doctor().warnings == [doctor.SATURATES]
    assert "reduce_range = true" in done("doctor").out.replace("\n", " ")


def test_gpus_are_listed_as_their_driver_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    told = subprocess.CompletedProcess([], 0, "NVIDIA H100 80GB HBM3, 9.0, 580.65.06\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: told)
    assert health.gpus() == [Gpu("NVIDIA H100 80GB HBM3", "sm_90", "580.65.06")]
