"""Spike-aware quantization of GLU language models: decide on paper, then edit the graph."""

from __future__ import annotations

from pathlib import Path

__version__ = "0.1.0"

_root = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "passes").is_dir() and (_root / "pyproject.toml").is_file():
    # A checkout without symbolic links (Windows): passes, runtime and models lie beside this package.
    __path__.append(str(_root))
