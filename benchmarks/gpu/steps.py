"""One step of a GPU run: what it finds is printed as records on its way, and last as one line of JSON."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

from benchmarks.gpu import checked, place, timed, whole
from benchmarks.gpu.drive import RECORD
from benchmarks.gpu.place import GPU, STAND_IN, Place
from spq_graph.passes.numbers.fp8 import E4M3
from spq_graph.runtime.proof.held import why_absent
from spq_graph.runtime.sessions.library import library_info, library_path
from spq_graph.terms.targets import PROFILES
from tests.support.products import Kind, Product

TESTS = "tests/gpu/test_fp8_cuda.py"
MANY = 300  # tests that pass at least where there is a device: half of them
# Small, and on both sides of where cuBLASLt takes over: a kernel is slow a hundredfold under the checker.
SMALLEST = "test_integers and 7x33 and f32 and w-e4m3 and e4m3-fast"
PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "--tb=short", "-q")
Found = dict[str, Any]


def machine(_kit: Path, where: Place) -> Found:
    """What is here, whether ONNX Runtime starts on it, and which of CUDA's libraries it took."""
    found: Found = {**place.machine(), "library": library_info(), "library_file": str(library_path())}
    found["versions"]["onnxruntime"] = ort.__version__  # which came without what tells its version to others
    found["providers"] = ort.get_available_providers()
    started(where)
    found["loaded"] = place.loaded("libcuda.so", "libcudart.so", "libcublasLt.so", "libcudnn.so")
    return found


def started(where: Place) -> None:
    """Open a session on the provider, and say everything that may be why there is none.

    Raises:
        SystemExit: it does not start.
    """
    absent = None if where.stands_in else why_absent(PROFILES["cuda"])
    cuda = (library_info() or {}).get("cuda") or {}
    if absent is None and (where.stands_in or cuda.get("usable")):
        return
    file = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    lines = [f"there is a device, and {absent or f'the operator library has no kernels for it: {cuda}'}"]
    lines.append(f"{file} does not find: {', '.join(place.unresolved(file)) or 'nothing'}")
    lines.append(f"folders of libraries: {place.library_folders()}")
    _tell_of_a_session()
    raise SystemExit("\n".join(lines))


def _tell_of_a_session() -> None:
    """Have ONNX Runtime log, to standard error, what it does to open a session on the device."""
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 19]> g (float[1] x) => (float[1] y) {y = Abs(x)}'
    )
    options = ort.SessionOptions()
    options.log_severity_level = 2
    ort.preload_dlls()
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=[GPU.provider])
    except Exception as error:  # the binding raises a class of its own for every status code
        print(error)


def product(_kit: Path, where: Place) -> Found:
    """One FP8 product of small integers, whose sums are exact, equals its definition; few rows, and many."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (48, 80)).astype(np.float32).astype(E4M3.dtype).view(np.uint8)
    one = Product(codes, np.array([0.5], np.float32), Kind(E4M3, 1))
    session = one.session(np.float32, where.provider)
    for rows in (1, 16, 17, 128):
        x = rng.integers(-1, 2, (rows, 48)).astype(np.float32)
        found = np.asarray(session.run(None, {"X": x})[0])
        np.testing.assert_array_equal(found, one.expected(x), err_msg=f"{rows} rows")
        record({"rows": rows, "equal": True})
    return {"onnxruntime": ort.__version__, "cuda": (library_info() or {}).get("cuda")}


def tests(_kit: Path, where: Place) -> Found:
    """What tests/gpu says, in its own last line; on a stand-in, of what needs no device."""
    chosen = ["tests/gpu/test_numbers.py"] if where.stands_in else ["tests/gpu", "--ignore-glob=*/test_kit*"]
    return _pytest([*PYTEST, "-rf", "--maxfail=25", *chosen], least=1 if where.stands_in else MANY)


def sanitizer(_kit: Path, where: Place) -> Found:
    """compute-sanitizer's memcheck over the smallest tests of the kernels, and its racecheck over our own."""
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if where.stands_in or tool is None:
        return {"result": "left out", "why": "no compute-sanitizer"}
    few = [*PYTEST, TESTS, "-k", SMALLEST]
    said = {}
    for name in ("memcheck", "racecheck"):
        said[name] = _pytest([tool, "--tool", name, "--target-processes", "all", "--error-exitcode", "9", *few])["said"]
        record({name: said[name]})
    return said


def models(kit: Path, where: Place) -> Found:
    """The small models: logits against the CPU's, every site as planned, and nothing in floats left to the CPU."""
    return checked.models(kit / "models", where, record)


def operator(_kit: Path, where: Place) -> Found:
    """The FP8 operator's times beside ONNX Runtime's products and cuBLASLt's own."""
    return timed.operator(where, record)


def entire(_kit: Path, where: Place) -> Found:
    """A LLaMA of SmolLM2-135M's shape, quantized here, against itself in float16."""
    return whole.entire(where, record)


def record(found: Found) -> None:
    """Keep something that is found on the way, whatever comes after it."""
    print(RECORD + json.dumps(found), flush=True)


def _pytest(command: list[str], least: int = 1) -> Found:
    """Run tests, and pass on what they print as it comes: they may not be given the time to end.

    Raises:
        SystemExit: one failed, or fewer passed than should have: skipped ones say nothing.
    """
    last = "nothing"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.strip("= \n") if re.search(r"\d (passed|failed|skipped|error)", line) else last
    passed = re.search(r"(\d+) passed", last)
    if process.returncode != 0 or passed is None or int(passed[1]) < least:
        raise SystemExit(f"status {process.returncode}: {last}; at least {least} should pass")
    return {"said": last}


STEPS: dict[str, Callable[[Path, Place], Found]] = {
    "machine": machine,
    "product": product,
    "tests": tests,
    "models": models,
    "operator": operator,
    "whole": entire,
    "sanitizer": sanitizer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("kit", type=Path)
    parser.add_argument("--stand-in", action="store_true")
    given = parser.parse_args()
    where = STAND_IN if given.stand_in else GPU
    absent = None if where.stands_in else place.no_device()
    if absent is not None:
        found: Found = {"result": "no device", "why": absent}
    else:
        if given.step != "machine":
            started(where)
        found = {"result": "done", **STEPS[given.step](given.kit, where)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
