"""Environments of their own for tools whose pins clash with ours; they see what is installed here beneath."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCE = Path(__file__).with_name("produce.py")
# What each holds beside, or instead of, what is installed here. optimum-onnx takes no transformers of today.
REQUIREMENTS: dict[str, list[str]] = {
    "here": [],
    "optimum": ["optimum-onnx==0.1.0", "transformers==4.57.6"],
    "genai": ["onnxruntime-genai==0.18.0"],
    "olive": ["olive-ai==0.13.0", "requests"],
    "slim": ["onnxslim==0.1.98", "onnxsim==0.8.1"],
    # It pins older versions of what lies beneath, which its protocol does without.
    "triton": ["--no-deps", "tritonclient[grpc]==2.73.0", "grpcio==1.85.3", "python-rapidjson==1.25"],
}


def python_of(name: str, folder: Path) -> Path:
    """The interpreter of an environment, made where it is not there yet; skips where pip cannot install."""
    if not REQUIREMENTS[name]:
        return Path(sys.executable)
    home = folder / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    wanted = "\n".join([*REQUIREMENTS[name], *_beneath()])
    done = home / "installed"
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
    # torch and what else is large is taken from here; what must be another version goes in front of it.
    where = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True
    )
    Path(where.stdout.decode().strip(), "beneath.pth").write_text("\n".join(_beneath()), encoding="utf-8")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS[name]]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode:
        last = (installed.stderr.strip().splitlines() or ["no reason given"])[-1]
        pytest.skip(f"{', '.join(REQUIREMENTS[name])} cannot be installed: {last}")
    done.write_text(wanted, encoding="utf-8")
    return python


def _beneath() -> list[str]:
    return [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]


def produce(python: Path, jobs: list[dict[str, Any]]) -> dict[str, str]:
    """Let an environment do jobs (see produce.py); returns why those failed that did, by what they were to write."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    ran = subprocess.run(
        [python, PRODUCE], input=json.dumps(jobs), capture_output=True, text=True, env=environment, cwd=PRODUCE.parent
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, str] = json.loads(ran.stdout.splitlines()[-1])
    return found
