"""Versions and machine that something was measured with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from spq_graph import __version__

_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "numpy",
    "torch",
    "transformers",
)


def environment() -> dict[str, str]:
    """Versions and machine, for the report."""
    found = {"spq-graph": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
