"""Make, without a GPU, what a GPU machine with Python 3.12 and CUDA 13 but no network lacks: `make gpu-kit`.

In it are ONNX Runtime for CUDA with the images of one architecture, less those of mixtures of experts; the wheels that
spq-graph needs beyond a machine with torch and transformers; the operator library; and small quantized models with
their inputs and the CPU's logits.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from benchmarks.gpu.parts import WHOLE, pack
from benchmarks.gpu.small import add_models
from benchmarks.gpu.trim import trim

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = 90
RUNTIME = "onnxruntime-gpu"
WHEELS = (
    "onnx-ir",
    "typer",
    "pydantic",
    "rich",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "annotated-doc",
    "shellingham",
    "markdown-it-py",
    "mdurl",
    "pygments",
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
UNUSED = ("libonnxruntime_providers_tensorrt.so", "libonnxruntime.so", "/tools/", "/transformers/", ".dist-info/")
EXPERTS = (b"GroupProblemShape", b"MoeFC", b"fused_moe", b"moe_")  # in names of kernels that no step runs


def fetch(names: list[str], folder: Path) -> None:
    """Get wheels for Python 3.12 from the package index, without what they need."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    where = [word for platform in PLATFORMS for word in ("--platform", platform)]
    python = ["--python-version", "3.12", "--implementation", "cp"]
    subprocess.run([*command, *python, *where, *names], check=True, cwd=ROOT)


def pinned(name: str) -> str:
    """A requirement of the version that is installed here; of the runtime for CUDA, that of the one for the CPU."""
    from importlib.metadata import version

    return f"{name}=={version('onnxruntime' if name == RUNTIME else name)}"


def unneeded(image: bytes) -> bool:
    """Whether an image, compressed by zstd, has kernels for mixtures of experts only."""
    import zstandard

    code = zstandard.ZstdDecompressor().decompressobj().decompress(image) if image[:4] == b"\x28\xb5\x2f\xfd" else image
    return any(name in code for name in EXPERTS)


def lay_out(folder: Path, wheels: Path) -> None:
    """Unpack the wheels, and drop and blank what no step needs."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            runtime = wheel.name.startswith("onnxruntime")
            names = [n for n in archive.namelist() if not (runtime and any(u in n for u in UNUSED))]
            archive.extractall(folder / "site", names)
    provider = folder / "site/onnxruntime/capi/libonnxruntime_providers_cuda.so"
    data = bytearray(provider.read_bytes())
    print("bytes of CUDA images kept and blanked:", *trim(data, ARCHITECTURE, lambda image: not unneeded(image)))
    provider.write_bytes(data)


def main() -> None:
    from spq_graph.runtime.sessions.library import library_info, library_path

    out, library = Path(sys.argv[1]), library_path()
    if library is None or (library_info() or {}).get("cuda") is None:
        sys.exit("the operator library has no CUDA kernels: install nvcc, and then `pip install -e .`")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        fetch([pinned(wheel) for wheel in (RUNTIME, *WHEELS)], work / "wheels")
        lay_out(work / "kit", work / "wheels")
        shutil.copy(library, work / "kit" / "libspq_graph_ops.so")
        add_models(work / "kit" / "models")
        written = pack(work / "kit", out)
    listed = subprocess.run(["git", "ls-files"], check=True, cwd=ROOT, capture_output=True, text=True).stdout
    tree = sum((ROOT / line).lstat().st_size for line in listed.splitlines())
    whole = sum(path.stat().st_size for path in written) + tree
    print(f"{len(written)} parts in {out}; with the tree {whole / 2**20:.1f} MiB")
    if whole >= WHOLE:
        sys.exit(f"that is not below {WHOLE >> 20} MiB")


if __name__ == "__main__":
    main()
