"""What is published: built where nothing lies but the source archive, installed by itself, and for which machines."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any

import pytest

from tests.support.compilers import compiler

pytestmark = pytest.mark.slow  # the library is compiled
ROOT = Path(__file__).resolve().parents[2]
MACHINES = {
    ("linux", "x86_64"): "cp311-manylinux_x86_64",
    ("linux", "aarch64"): "cp311-manylinux_aarch64",
    ("macos", "x86_64"): "cp311-macosx_x86_64",
    ("macos", "arm64"): "cp311-macosx_arm64",
    ("windows", "AMD64"): "cp311-win_amd64",
}


def ran(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


@pytest.mark.parametrize(("platform", "machine"), MACHINES)
def test_which_wheels_cibuildwheel_makes(platform: str, machine: str) -> None:
    """One for each kind of machine: a wheel is tagged py3, and there is no ONNX Runtime for musl or for 32 bits."""
    pytest.importorskip("cibuildwheel")
    command = [sys.executable, "-m", "cibuildwheel", "--print-build-identifiers", "--platform", platform]
    done = ran([*command, "--archs", machine, ROOT])
    assert done.stdout.split() == [MACHINES[platform, machine]], done.stderr


def test_msvc_leaves_the_library_out(tmp_path: Path) -> None:
    """It knows neither GCC's vectors nor its assembly. The wheel is then the package alone, and not a failed build."""
    if compiler() is None or shutil.which("cmake") is None:
        pytest.skip("needs cmake and a compiler to stand in for MSVC")
    build, said = tmp_path / "build", tmp_path / "msvc.cmake"
    known = {"COMPILER_FORCED": "ON", "COMPILER_ID_RUN": "ON", "COMPILER_ID": "MSVC"}
    said.write_text("".join(f"set(CMAKE_CXX_{name} {value})\n" for name, value in known.items()))
    made = ran(["cmake", "-S", ROOT / "runtime" / "csrc", "-B", build, f"-DCMAKE_TOOLCHAIN_FILE={said}"])
    assert made.returncode == 0, made.stderr
    assert "MSVC does not compile the operator library" in made.stderr
    assert ran(["cmake", "--build", build]).returncode == 0
    assert ran(["cmake", "--install", build, "--prefix", tmp_path / "wheel"]).returncode == 0
    assert not list((tmp_path / "wheel").rglob("*spq_graph_ops*"))


@pytest.fixture(scope="module")
def installed(archives: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which the wheel is installed; what it depends on is that of this one."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    done = ran([python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", archives[1]])
    assert done.returncode == 0, done.stderr
    # Behind its own packages, and without what a checkout that is installed as editable puts before all others.
    site = ran([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip()
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (Path(site) / "dependencies.pth").write_text("\n".join(packages))
    return python


def test_the_installed_wheel_quantizes(installed: Path, tmp_path: Path) -> None:
    """The same program that cibuildwheel runs, away from the sources."""
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "SPQ_"))}
    where = ran([installed, "-c", "import spq_graph; print(spq_graph.__file__)"], cwd=tmp_path, env=alone)
    assert Path(where.stdout.strip()).is_relative_to(installed.parents[1]), where.stderr
    done = ran([installed, "-m", "tests.packaging.installed"], cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "held against it" in done.stdout  # by `verify`, which comes last


def test_the_source_archive_builds_in_a_clean_environment(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """With what pyproject.toml asks of a build and nothing else: as pip does of one that has no wheel."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--retries", "1", "-w", tmp_path]
    done = ran([*command, "-Ccmake.define.SPQ_CUDA=OFF", archives[0]], timeout=600)
    if "No matching distribution found for scikit-build-core" in done.stderr:
        pytest.skip("no package index to take scikit-build-core from")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == archives[1].name
    names = [set(zipfile.ZipFile(one).namelist()) for one in (wheel, archives[1])]
    assert names[0] == names[1]


def test_the_projects_pages(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        told = HeaderParser().parsestr(wheel.read(metadata).decode()).get_all("Project-URL", [])
    assert [line.partition(",")[0] for line in told] == ["Homepage", "Documentation", "Issues", "Changelog"]
    home = "https://github.com/spq-graph/spq-graph"
    pages = [address.removeprefix(f"{home}/blob/main/") for address in (line.split(", ")[1] for line in told)]
    assert pages[0] == home
    assert all((ROOT / page).is_file() for page in pages if not page.startswith("https:"))
