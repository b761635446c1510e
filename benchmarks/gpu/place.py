"""Where the steps of a GPU run compute: the device, what stands in for it, and what the machine has and lacks."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

DRIVER = "libcuda.so.1"
# Where CUDA's libraries lie on machines whose loader does not know them all.
FOLDERS = ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/local/cuda/lib64")
PACKAGES = ("torch", "numpy", "onnx", "onnx-ir", "transformers", "triton")


@dataclass(frozen=True, slots=True)
class Place:
    """Where steps compute.

    Attributes:
        provider: ONNX Runtime's execution provider.
        device: as ONNX Runtime and torch call it.
    """

    provider: str
    device: str

    @property
    def stands_in(self) -> bool:
        """Whether this is no GPU: steps are then small, and their figures say nothing."""
        return self.device == "cpu"


GPU = Place("CUDAExecutionProvider", "cuda")
STAND_IN = Place("CPUExecutionProvider", "cpu")


@cache
def no_device() -> str | None:
    """Why the driver has no device for us; None where it has one.

    Raises:
        RuntimeError: there is one, and the driver's library cannot be used.
    """
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        if nodes := sorted(Path("/dev").glob("nvidia[0-9]*")):
            raise RuntimeError(f"there is {nodes[0]}, and the driver's library does not load: {error}") from error
        return f"no NVIDIA driver: {error}"
    if status := driver.cuInit(0):
        return f"the driver finds no device: cuInit gives {status}"
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return None if count.value else "the driver finds no device"


def library_folders() -> list[str]:
    """Folders of CUDA's libraries: those that came as wheels, which torch uses, before the machine's own."""
    wheels = [folder for path in sys.path for folder in sorted(Path(path).glob("nvidia/*/lib"))]
    return [str(folder) for folder in (*wheels, *map(Path, FOLDERS)) if folder.is_dir()]


def environment() -> dict[str, str]:
    """What a step's process gets: CUDA's libraries by name, whoever opens them, and kernels loaded once needed.

    Images that the kit does without are blank, and only a loader that looks at all of them would mind.
    """
    known = os.environ.get("LD_LIBRARY_PATH")
    folders = [*library_folders(), *([known] if known else [])]
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(folders), "CUDA_MODULE_LOADING": "LAZY"}


def machine() -> dict[str, Any]:
    """What is here, in words: device, driver, versions."""
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "nvidia_smi": _said("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"),
        "nvcc": (_said("nvcc", "--version") or "").rpartition("release ")[2].partition(",")[0] or None,
        "versions": {name: found for name in PACKAGES if (found := _version(name)) is not None},
    }


def unresolved(library: Path) -> list[str]:
    """What a shared library needs and the loader does not find, nor what that needs."""
    said = _said("ldd", str(library)) or ""
    return [line.split()[0] for line in said.splitlines() if "not found" in line]


def loaded(*names: str) -> dict[str, str]:
    """By name, which file of that name this process has mapped."""
    return {name: path for name in names for path in _mapped() if Path(path).name.startswith(name)}


def _mapped() -> Iterator[str]:
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if "/" in line:
            yield "/" + line.partition("/")[2]


def _said(program: str, *arguments: str) -> str | None:
    """What a program prints; None where it is absent or fails."""
    found = shutil.which(program) or shutil.which(program, path="/usr/local/cuda/bin:/usr/local/nvidia/bin")
    if found is None:
        return None
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
