"""The arithmetic inside the CUDA kernels against that of the CPU kernels, compiled for this machine; needs no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "runtime" / "csrc"
COMPILER = shutil.which(os.environ.get("CXX", "c++"))


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_every_code_and_millions_of_floats(tmp_path: Path) -> None:
    program = tmp_path / "numbers"
    build = [str(COMPILER), "-std=c++17", "-O2", "-I", str(SOURCES)]
    subprocess.run([*build, str(HERE / "numbers.cpp"), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 20_000_000
