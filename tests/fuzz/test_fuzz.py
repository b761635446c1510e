"""A share of the cases, always the same ones; `make fuzz` runs them by the thousand."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]
SHARE = {"inspect": 160, "quantize": 30, "others": 30, "documents": 40, "sources": 5, "options": 40}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="cases are forked, and their memory is read from /proc")
def test_nothing_that_is_malformed_ends_otherwise_than_in_words(tmp_path: Path) -> None:
    share = SHARE if all(map(find_spec, ("torch", "transformers", "gguf"))) else SHARE | {"sources": 0}
    counts = [f"--{kind}={count}" for kind, count in share.items()]
    # A process of its own: cases are forked from it, and this one may have threads already.
    command = [sys.executable, "-m", "tests.fuzz", *counts, "--seed=1", "--workers=2", f"--keep={tmp_path}"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert f"{sum(share.values())} cases" in ran.stdout
