"""One step of a GPU run: what it found is printed last, as one line of JSON."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from spq_graph.documents.plan import Plan
from spq_graph.passes.numbers.fp8 import E4M3
from spq_graph.runtime.proof.held import check_executed, execute_on, runner_on, why_absent
from spq_graph.runtime.sessions.library import library_info
from spq_graph.terms.targets import PROFILES
from tests.support.products import Kind, Product

CUDA = PROFILES["cuda"]
TESTS = "tests/gpu/test_fp8_cuda.py"
Found = dict[str, Any]


def product(_kit: Path) -> Found:
    """One FP8 product of small integers, whose sums are exact, equals its definition."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 2, (48, 80)).astype(np.float32).astype(E4M3.dtype).view(np.uint8)
    one = Product(codes, np.float32([0.5]), Kind(E4M3, 1))
    x = rng.integers(-1, 2, (16, 48)).astype(np.float32)
    found = np.asarray(one.session(np.float32).run(None, {"X": x})[0])
    np.testing.assert_array_equal(found, one.expected(x))
    return {"onnxruntime": ort.__version__, "cuda": (library_info() or {}).get("cuda")}


def tests(_kit: Path) -> Found:
    """What tests/gpu says, in its own last line."""
    return _pytest([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "tests/gpu"])


def reference(kit: Path) -> Found:
    """The quantized reference: logits against the CPU's, and every site as planned."""
    folder = kit / "reference"
    model, plan, kept = folder / "model.onnx", Plan.load(folder / "plan.json"), np.load(folder / "expected.npz")
    executed = execute_on(CUDA, model, kept["ids"][:1])
    check_executed(executed, plan, str(model))
    logits = runner_on(CUDA, model).logits(kept["ids"], np.ones_like(kept["ids"]))
    difference = float(np.linalg.norm(logits - kept["logits"]) / np.linalg.norm(kept["logits"]))
    agree = float((logits.argmax(-1) == kept["logits"].argmax(-1)).mean())
    return {"relative_l2": difference, "same_first": agree, "placed": executed.by_provider}


def operator(_kit: Path) -> Found:
    """The FP8 operator's times beside ONNX Runtime's products, as `make bench-gpu` takes them."""
    sys.path.insert(0, "benchmarks")
    import fp8_cuda
    from rich.console import Console

    shape = fp8_cuda.SHAPES[0]
    return {"records": fp8_cuda.measure(shape, fp8_cuda.ROWS, 5, Console(stderr=True))}


def sanitizer(_kit: Path) -> Found:
    """compute-sanitizer's memcheck over the smallest tests of the kernels."""
    tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if tool is None:
        return {"result": "left out", "why": "no compute-sanitizer"}
    few = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS, "-k", "TestExact and 7x33"]
    return _pytest([tool, "--tool", "memcheck", "--error-exitcode", "9", *few])


def _pytest(command: list[str]) -> Found:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stdout[-3000:] + done.stderr[-1000:])
    return {"said": done.stdout.strip().rsplit("\n", 1)[-1]}


STEPS: dict[str, Callable[[Path], Found]] = {
    step.__name__: step for step in (product, tests, reference, operator, sanitizer)
}


def main() -> None:
    name, kit = sys.argv[1:]
    cuda = (library_info() or {}).get("cuda") or {}
    if (absent := why_absent(CUDA)) is not None:
        found: Found = {"result": "no device", "why": absent}
    elif not cuda.get("usable"):
        raise SystemExit(f"there is a device, and the operator library has no kernels for it: {cuda}")
    else:
        found = {"result": "done", **STEPS[name](Path(kit))}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
