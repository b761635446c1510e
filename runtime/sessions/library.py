"""Where the operator library is, what is in it, and how a session gets it.

A model with FP8 sites carries the operator as a function too, so everything runs without the library; with it, the
kernels are taken.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from spq_graph.terms.errors import SourceError

# A library somewhere else, or "" for none: the models then run by their functions.
OVERRIDE = "SPQ_GRAPH_LIBRARY"
_NAMES = {"win32": "spq_graph_ops.dll", "darwin": "libspq_graph_ops.so"}


def library_path() -> Path | None:
    """The operator library to load, or None where there is none.

    Environment variable SPQ_GRAPH_LIBRARY names another file; empty, it turns the library off.

    Raises:
        SourceError: the variable names a file that is not there.
    """
    override = os.environ.get(OVERRIDE)
    if override is not None:
        if override and not Path(override).is_file():
            raise SourceError("no such operator library", where=f"{OVERRIDE}={override}", remedy="unset the variable")
        return Path(override) if override else None
    path = Path(__file__).resolve().parents[1] / "lib" / _NAMES.get(sys.platform, "libspq_graph_ops.so")
    return path if path.is_file() else None


def library_info(path: Path | None = None) -> dict[str, Any] | None:
    """What the library says of itself, or None where there is none or it cannot be loaded.

    Returns:
        {"version", "operator_version", "isa": the instruction set in use, "available": all that this machine has,
        "cuda": what CUDA kernels were compiled in, or null}.
    """
    path = path or library_path()
    return _info(path) if path is not None else None


@cache
def _info(path: Path) -> dict[str, Any] | None:
    try:
        library = ctypes.CDLL(str(path))
        library.SpqGraphInfo.restype = ctypes.c_char_p
        found: dict[str, Any] = json.loads(library.SpqGraphInfo())
    except (OSError, AttributeError, ValueError):
        return None
    return found


def register(options: Any) -> bool:
    """Give an onnxruntime.SessionOptions the operators; returns whether there was a library to give.

    A library that does not fit this machine or this ONNX Runtime counts as none: the functions in the models serve.

    Raises:
        SourceError: SPQ_GRAPH_LIBRARY names a file that is not there.
    """
    path = library_path()
    if path is None or library_info(path) is None:
        return False
    try:
        options.register_custom_ops_library(str(path))
    except Exception:  # the binding raises a class of its own for every status code
        return False
    return True


def cannot_load(reason: str, path: Path) -> SourceError:
    """Say in an error why ONNX Runtime does not load a file."""
    import onnxruntime as ort

    if unknown := re.search(r"([\w.]+:\w+)\(-?\d+\) is not a registered function", reason):
        return SourceError(
            f"ONNX Runtime {ort.__version__} has no operator {unknown[1]}, so this model cannot be run",
            where=str(path),
            remedy="`spq-graph inspect` shows what is in it; to quantize it, its operators must run here",
        )
    return SourceError(
        f"ONNX Runtime {ort.__version__} cannot load this model: {reason}",
        where=str(path),
        remedy="export it again without what is named; of opsets, pip install -U onnxruntime knows newer ones",
    )
