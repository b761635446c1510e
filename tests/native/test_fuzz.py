"""The kernels of the operator library alone, in C++, under the sanitizers: see fuzz.cpp."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.compilers import compiles

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "runtime" / "csrc"
ARM = "aarch64-linux-gnu"


def done(command: list[str], *, limit: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=limit)


def built(folder: Path, *targets: str, options: tuple[str, ...] = ()) -> Path:
    """Build targets of the library's own CMake project; returns the folder where they lie."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("needs CMake and a C++ compiler")
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    settings = ["-S", str(SOURCES), "-B", str(folder), "-DSPQ_FUZZ=ON", "-DSPQ_CUDA=OFF", *options]
    configure = ["cmake", *generator, *settings]
    for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2", "--target", *targets]):
        run = done(command)
        assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not compiles("c++", "-fsanitize=address,undefined"):
        pytest.skip("there is no C++ compiler, or it has no sanitizers")
    folder = tmp_path_factory.mktemp("fuzz")
    return built(folder, "fuzz") / "fuzz"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kernels_against_float64(fuzzer: Path, seed: int) -> None:
    run = done([str(fuzzer), "120", str(seed)])
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("all of them pass\n")


@pytest.mark.slow
def test_int8_sums_are_exact(tmp_path: Path) -> None:
    if not compiles("c++", "-fsanitize=address,undefined"):
        pytest.skip("there is no C++ compiler, or it has no sanitizers")
    run = done([str(built(tmp_path, "fuzz_int8") / "fuzz_int8"), "150", "1"])
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout == "all of them pass\n"


@pytest.mark.slow
def test_on_arm(tmp_path: Path) -> None:
    """The library builds for a machine without any of the instruction sets, and computes the same there."""
    if shutil.which(f"{ARM}-g++") is None:
        pytest.skip(f"needs {ARM}-g++")
    # Neither sanitizer runs under an emulator everywhere.
    target = ("-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={ARM}-g++")
    folder = built(tmp_path / "build", "fuzz", "spq_graph_ops", options=(*target, "-DSPQ_SANITIZE=OFF"))
    header = (folder / "libspq_graph_ops.so").read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == 183  # EM_AARCH64
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("built; needs qemu-aarch64 to run")
    run = done(["qemu-aarch64", "-L", f"/usr/{ARM}", str(folder / "fuzz"), "30", "1"])
    assert run.returncode == 0, run.stdout + run.stderr
    assert "instruction sets: generic\n" in run.stdout
