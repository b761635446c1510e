"""The archives, which take long to build and are built once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Not part of the sources, wherever they lie: a build must not see them.
OUTPUTS = (".git", ".venv*", "out", "build", "dist", "lib", "__pycache__", ".*_cache", ".hypothesis")


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive of a copy of this checkout, and the wheel built from that archive alone."""
    base = tmp_path_factory.mktemp("archives")
    checkout, out = base / "checkout", base / "dist"
    shutil.copytree(ROOT, checkout, symlinks=True, ignore=shutil.ignore_patterns(*OUTPUTS))
    # Kernels for CUDA would take a minute where there is a compiler for them, and change nothing of what is looked at.
    command = [sys.executable, "-m", "build", "--no-isolation", "-Ccmake.define.SPQ_CUDA=OFF", "--outdir", str(out)]
    built = subprocess.run([*command, str(checkout)], cwd=base, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))
