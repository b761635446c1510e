"""An interrupt midway: no half OUT, no intermediate files, and an exit status that says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from tests.conftest import ROOT
from tests.support.command import contents
from tests.support.decoders import write_decoder, write_ids

PATIENCE = 120  # seconds


@pytest.mark.skipif(os.name == "nt", reason="signals work otherwise there")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
@pytest.mark.parametrize("earlier", [False, True])
def test_interrupt(tmp_path: Path, number: signal.Signals, status: int, earlier: bool) -> None:
    inputs, outputs, temporary = (tmp_path / name for name in ("inputs", "outputs", "temporary"))
    for folder in (inputs, outputs, temporary):
        folder.mkdir()
    model = write_decoder(inputs / "model.onnx", layers=4, spikes={1: 1000.0})
    write_ids(inputs / "calibration.npz", rows=20_000)  # far more than is run before the signal
    if earlier:
        (outputs / "out").mkdir()
        (outputs / "out" / "plan.json").write_text("{}")
    before = contents(inputs, outputs)
    command = [
        sys.executable,
        "-m",
        "spq_graph",
        "quantize",
        str(model),
        "-o",
        str(outputs / "out"),
        "--force",
        "--calibration",
        str(inputs / "calibration.npz"),
        "--calibration-tokens",
        "1000000",
        "--no-eval",
    ]
    # Without the last of them, importing ONNX Runtime leaves a file of its own among the temporary ones.
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
    # Jobs that a shell started in the background ignore SIGINT, others SIGHUP, and so would their children.
    ours = {each: signal.signal(each, signal.SIG_DFL) for each in (signal.SIGINT, signal.SIGHUP)}
    try:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    finally:
        for each, handler in ours.items():
            signal.signal(each, handler)
    deadline = time.monotonic() + PATIENCE
    # Once the folder for OUT is there, it calibrates and decides.
    while not (list(outputs.glob(".out.partial-*")) and list(temporary.iterdir())):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert "interrupted; nothing was left behind" in errors
    assert contents(inputs, outputs) == before
    assert [path.name for path in outputs.iterdir()] == (["out"] if earlier else [])
    assert not list(temporary.iterdir())
