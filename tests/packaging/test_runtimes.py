"""One binary of the operator library on the ONNX Runtimes that this package allows and before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from spq_graph.passes.numbers.fp8 import E4M3, Fp8Format
from tests.support.operator_files import LIBRARY, NEEDS_LIBRARY, Product, random_codes

pytestmark = [NEEDS_LIBRARY, pytest.mark.slow]

# Without onnx, which the virtual environment lacks; prints which operators ran.
SCRIPT = """
import json, sys
import numpy as np
import onnxruntime as ort

model, inputs, outputs, library, version = sys.argv[1:]
assert ort.__version__ == version, ort.__version__
options = ort.SessionOptions()
options.enable_profiling, options.profile_file_prefix, options.log_severity_level = True, outputs, 3
if library:
    options.register_custom_ops_library(library)
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
assert session.get_outputs()[0].shape == ["tokens", 70], session.get_outputs()[0].shape
x = np.load(inputs)
np.savez(outputs, many=session.run(None, {"A": x})[0], one=session.run(None, {"A": x[:1]})[0])
with open(session.end_profiling()) as file:
    nodes = [event for event in json.load(file) if event.get("cat") == "Node" and "op_name" in event.get("args", {})]
print(*sorted({event["args"]["op_name"] for event in nodes}))
"""


@pytest.fixture(scope="module", params=["1.20.1", "1.23.2"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The Python of a virtual environment with one version of ONNX Runtime, and that version."""
    folder = tmp_path_factory.mktemp("runtime")
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    wanted = [f"onnxruntime=={request.param}", "numpy"]
    install = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--retries", "1", *wanted]
    try:
        done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip did not install {wanted[0]} within five minutes")
    if done.returncode:
        # No network, or no wheel of it for this Python.
        pytest.skip(f"pip cannot install {wanted[0]}: {(done.stderr.splitlines() or ['no reason given'])[-1]}")
    return python, request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("activations", [None, E4M3], ids=["as_they_are", "e4m3"])
def test_kernel_and_function(
    runtime: tuple[Path, str], tmp_path: Path, dtype: type[np.generic], activations: Fp8Format | None
) -> None:
    product = Product(
        random_codes(40, 70), np.full(70, 1e-3, np.float32), activations, np.float32(0.02), dtype=dtype, opset=21
    )
    model, inputs = tmp_path / "product.onnx", tmp_path / "x.npy"
    onnx.save(product.model(), model)
    x = np.random.default_rng(0).standard_normal((9, 40)).astype(dtype)
    np.save(inputs, x)
    python, version = runtime
    for library in (str(LIBRARY), ""):
        outputs = tmp_path / f"y{bool(library)}.npz"
        command = [str(python), "-c", SCRIPT, str(model), str(inputs), str(outputs), library, version]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (done.stdout.split() == ["Fp8MatMul"]) == bool(library), done.stdout
        found = np.load(outputs)
        product.check(x, found["many"])
        product.check(x[:1], found["one"])
