"""The operator library as it is installed: there where it can be built, and missed by nobody where it cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

import spq_graph
from spq_graph.passes.base.marks import VERSION
from spq_graph.runtime.sessions.library import library_info, library_path
from tests.support.compilers import compiler
from tests.support.operator_files import Product, random_codes

EXPORTS = {"RegisterCustomOps", "SpqGraphInfo", "SpqGraphVersion"}
# All of them are the C library's own files, which no machine lacks one of.
C_LIBRARY = ("libc.", "libm.", "libdl.", "librt.", "libpthread.", "ld-linux")

# Says which library an installed package has, and runs a file with it, or without where there is none.
ASK = """
import json, sys
import numpy as np
import onnxruntime as ort
import spq_graph
from spq_graph.runtime.sessions.library import library_info, library_path, register

options = ort.SessionOptions()
given = register(options)
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
y = session.run(None, {"A": np.ones((2, 8), np.float32)})[0]
path = library_path()
print(json.dumps([spq_graph.__file__, str(path) if path else None, library_info(), given, y.tolist()]))
"""


def asked(package: Path, model: Path) -> tuple[str, str | None, dict[str, object] | None, bool, list[list[float]]]:
    """What ASK prints where the package lies in a folder."""
    # A checkout that is installed as editable comes before any path, but for -S.
    paths = [str(package), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("SPQ_GRAPH_LIBRARY", None)
    command = [sys.executable, "-S", "-c", ASK, str(model)]
    done = subprocess.run(command, env=environment, cwd=package, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert Path(found[0]).is_relative_to(package)
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "product.onnx"
    onnx.save(Product(random_codes(8, 33)).model(), path)
    return path


def test_where_a_compiler_is_the_library_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never skipped with a compiler at hand: a build that fails quietly must not pass for a machine without one."""
    if compiler() is None:
        pytest.skip("there is no C++ compiler, and so no library")
    monkeypatch.delenv("SPQ_GRAPH_LIBRARY", raising=False)
    assert library_path() is not None, "there is a C++ compiler but no operator library: pip install -e . builds it"
    info = library_info()
    assert info is not None, "the operator library cannot be loaded"
    assert info["operator_version"] == VERSION
    assert info["available"][0] == "generic"


@pytest.mark.slow
def test_the_wheel_brings_it(archives: tuple[Path, Path], model: Path, tmp_path: Path) -> None:
    if compiler() is None:
        pytest.skip("there is no C++ compiler, and so no library")
    with zipfile.ZipFile(archives[1]) as wheel:
        wheel.extractall(tmp_path / "installed")
    _, path, info, given, y = asked(tmp_path / "installed", model)
    assert path is not None
    assert given
    assert info is not None
    assert info["version"] == spq_graph.__version__
    np.testing.assert_allclose(y, Product(random_codes(8, 33)).expected(np.ones((2, 8), np.float32)), rtol=1e-5)


@pytest.mark.slow
def test_without_a_compiler_the_package_installs(archives: tuple[Path, Path], model: Path, tmp_path: Path) -> None:
    """And files with FP8 sites run by the function that they carry."""
    target, nothing = tmp_path / "installed", str(tmp_path / "no-such-compiler")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--no-index", "--target", str(target), str(archives[0])],
        env={**os.environ, "CC": nothing, "CXX": nothing, "CUDACXX": nothing},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, path, info, given, y = asked(target, model)
    assert (path, info, given) == (None, None, False)
    np.testing.assert_allclose(y, Product(random_codes(8, 33)).expected(np.ones((2, 8), np.float32)), rtol=1e-5)


@pytest.mark.skipif(library_path() is None, reason="the operator library is not built")
class TestWhatIsInIt:
    def read(self, *command: str) -> list[str]:
        if shutil.which(command[0]) is None:
            pytest.skip(f"needs {command[0]}")
        done = subprocess.run([*command, str(library_path())], capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    def test_it_needs_the_c_library_alone(self) -> None:
        lines = self.read("readelf", "-d")
        needed = [line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line]
        assert needed
        assert [name for name in needed if not name.startswith(C_LIBRARY)] == []

    def test_it_shows_three_functions(self) -> None:
        lines = self.read("nm", "--dynamic", "--defined-only")
        assert {line.split()[-1] for line in lines if line} == EXPORTS
