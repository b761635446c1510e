"""What this machine and this ONNX Runtime are, and which kernel a small model really runs on them."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from spq_graph.documents.examination import Gpu, Library, LibraryBuild, Machine
from spq_graph.documents.leftovers import temporary_folder
from spq_graph.runtime.sessions.executed import Executed, executed_by
from spq_graph.runtime.sessions.library import OVERRIDE, library_info, library_path, register
from spq_graph.runtime.sessions.openvino import OpenVinoSession, executed_by_openvino
from spq_graph.terms.errors import SourceError
from spq_graph.terms.targets import CPU_PROVIDER, Profile

_INSTRUCTIONS = (
    "avx2",
    "avx512f",
    "avx512bw",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
)


def machine() -> Machine:
    """The processor, its cores, and what ONNX Runtime may run on."""
    return Machine(
        processor=processor(),
        cores=os.cpu_count(),
        instruction_sets=instruction_sets(),
        gpus=gpus(),
        system=f"{platform.system()} {platform.machine()}",
        providers=list(ort.get_available_providers()),
    )


def processor() -> str:
    """The processor, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def library() -> Library:
    """The operator library, what it says of itself, and why it does not serve where it does not."""
    try:
        path = library_path()
    except SourceError as cause:
        return Library(None, str(cause))
    if path is None:
        off = os.environ.get(OVERRIDE) == ""
        return Library(None, f"{OVERRIDE} turns it off" if off else "it was not built: no C++ compiler")
    info = library_info(path)
    if info is None:
        return Library(str(path), "it cannot be loaded on this machine")
    taken = register(ort.SessionOptions())
    problem = None if taken else f"ONNX Runtime {ort.__version__} does not take it"
    return Library(str(path), problem, LibraryBuild(**info))


def kernels_of(
    profile: Profile, path: Path, feeds: Mapping[str, npt.NDArray[np.float32]]
) -> tuple[Executed, npt.NDArray[np.float32]]:
    """Run a model of one output once on a target, and list the kernels that ran; with its result.

    What is portable runs without our operator library, as it would anywhere.

    Raises:
        SourceError: the target's runtime cannot load or run it.
    """
    if profile.runtime == "openvino":
        return _on_openvino(path, feeds)
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    if profile.name != "portable":
        register(options)
    providers = list(dict.fromkeys([profile.provider or CPU_PROVIDER, CPU_PROVIDER]))
    with temporary_folder() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
        try:
            session = ort.InferenceSession(str(path), options, providers=providers)
            [result] = session.run(None, dict(feeds))
        except Exception as cause:  # the binding raises a class of its own for every status code
            raise SourceError(
                f"ONNX Runtime: {str(cause).splitlines()[0]}",
                where=str(path),
                remedy="pip install --force-reinstall onnxruntime",
            ) from cause
        return executed_by(session), result


def _on_openvino(path: Path, feeds: Mapping[str, npt.NDArray[np.float32]]) -> tuple[Executed, npt.NDArray[np.float32]]:
    try:
        session = OpenVinoSession(path, threads=1)
        [result] = session.run([port.name for port in session.get_outputs()], feeds)
    except Exception as cause:  # the binding raises RuntimeError
        raise SourceError(
            f"OpenVINO: {str(cause).splitlines()[-1]}", where=str(path), remedy="pip install --force-reinstall openvino"
        ) from cause
    return executed_by_openvino(session, path), result


def gpus() -> list[Gpu]:
    """NVIDIA's GPUs, as its own tool lists them."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [[part.strip() for part in line.split(",")] for line in found.splitlines() if line.count(",") == 2]
    return [Gpu(name, f"sm_{cap.replace('.', '')}", driver) for name, cap, driver in rows]


def instruction_sets() -> list[str]:
    """What the processor has of the instruction sets that products here are made of, oldest first."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next(
        (set(line.split(":", 1)[1].split()) for line in lines if line.startswith(("flags", "Features"))), set()
    )
    return [name for name in _INSTRUCTIONS if name in flags]
