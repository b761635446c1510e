"""Health: what this machine and this ONNX Runtime are, and which kernel a small model really runs on them."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from spq_graph.errors import SourceError
from spq_graph.runtime.operators import OVERRIDE, library_info, library_path, register
from spq_graph.runtime.session import Executed, executed_by


def machine() -> dict[str, Any]:
    """The processor, its cores, and what ONNX Runtime may run on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "providers": list(ort.get_available_providers()),
    }


def processor() -> str:
    """The processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def library() -> dict[str, Any]:
    """The operator library: `path`, what it says of itself, and `problem` where it does not serve."""
    try:
        path = library_path()
    except SourceError as cause:
        return {"path": None, "problem": str(cause)}
    if path is None:
        off = os.environ.get(OVERRIDE) == ""
        return {"path": None, "problem": f"{OVERRIDE} turns it off" if off else "it was not built: no C++ compiler"}
    info = library_info(path)
    if info is None:
        return {"path": str(path), "problem": "it cannot be loaded on this machine"}
    if not register(ort.SessionOptions()):
        return {"path": str(path), **info, "problem": f"ONNX Runtime {ort.__version__} does not take it"}
    return {"path": str(path), **info, "problem": None}


def kernels_of(path: Path, feeds: Mapping[str, npt.NDArray[np.float32]]) -> Executed:
    """Run a model once on the CPU and list the kernels that ran.

    Raises:
        SourceError: ONNX Runtime cannot load or run it.
    """
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    register(options)
    with tempfile.TemporaryDirectory(prefix="spq-graph-") as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            session.run(None, dict(feeds))
        except Exception as cause:  # the binding raises a class of its own for every status code
            raise SourceError(f"ONNX Runtime: {str(cause).splitlines()[0]}", where=str(path)) from cause
        return executed_by(session)
