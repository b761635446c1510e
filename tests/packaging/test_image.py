"""The Dockerfile: no image is built here, but what it names is there. Its wheel is that of test_wheel.py."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_what_it_names_is_there() -> None:
    extras = re.search(r"^ARG EXTRAS=(.*)$", DOCKERFILE, flags=re.MULTILINE)
    entry = re.search(r'^ENTRYPOINT \["(.*)"\]$', DOCKERFILE, flags=re.MULTILINE)
    python = re.search(r"^ARG PYTHON=(.*)$", DOCKERFILE, flags=re.MULTILINE)
    assert extras is not None
    assert entry is not None
    assert python is not None
    assert set(extras.group(1).split(",")) <= PROJECT["optional-dependencies"].keys()
    assert entry.group(1) in PROJECT["scripts"]
    assert PROJECT["requires-python"] == f">={python.group(1)}"
    for copied in re.findall(r"^COPY (?!--from)(\S+) ", DOCKERFILE, flags=re.MULTILINE):
        assert (ROOT / copied).exists()
