"""The archives: the wheel holds spq_graph and nothing else, and the source archive is enough to build it."""

from __future__ import annotations

import subprocess
import sysconfig
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import spq_graph
from tests.support.compilers import compiler

pytestmark = pytest.mark.slow  # the library is compiled
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("passes", "runtime", "models")
LIBRARIES = "spq_graph/runtime/lib/"
DIST_INFO = f"spq_graph-{spq_graph.__version__}.dist-info"


def git_files() -> set[str] | None:
    """Tracked files of this checkout, or None where git cannot tell."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    return set(listing.stdout.splitlines()) if listing.returncode == 0 else None


def is_source(name: str) -> bool:
    return name.startswith("runtime/csrc/")


def names_in(archive: Path) -> set[str]:
    """Names of the files in a source archive, below its one folder."""
    with tarfile.open(archive) as source:
        return {member.name.split("/", 1)[1] for member in source.getmembers()}


@pytest.fixture(scope="module")
def wheel_names(archives: tuple[Path, Path]) -> list[str]:
    with zipfile.ZipFile(archives[1]) as wheel:
        return wheel.namelist()


def test_wheel_is_for_every_python_3_on_this_platform(archives: tuple[Path, Path], wheel_names: list[str]) -> None:
    """The library speaks ONNX Runtime's interface and not Python's; without it the wheel is for any platform."""
    libraries = [name for name in wheel_names if name.startswith(LIBRARIES)]
    assert len(libraries) == bool(compiler())
    platform = sysconfig.get_platform().translate(str.maketrans("-.", "__")) if libraries else "any"
    assert archives[1].name == f"spq_graph-{spq_graph.__version__}-py3-none-{platform}.whl"


def test_wheel_holds_only_the_package(wheel_names: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel_names} == {"spq_graph", DIST_INFO}
    assert f"{DIST_INFO}/licenses/LICENSE" in wheel_names
    assert not [name for name in wheel_names if "__pycache__" in name or name.endswith(".pyc")]
    assert len(wheel_names) == len(set(wheel_names))


def test_wheel_holds_every_tracked_file_of_the_package(wheel_names: list[str]) -> None:
    tracked = git_files()
    if tracked is None:
        pytest.skip("git does not know this checkout")
    inside = {name for name in tracked if name.startswith("spq_graph/") and not (ROOT / name).is_symlink()}
    linked = {f"spq_graph/{name}" for name in tracked if name.split("/")[0] in FOLDERS and not is_source(name)}
    assert inside | linked <= set(wheel_names)
    assert "spq_graph/py.typed" in wheel_names


def test_wheel_holds_no_sources_of_the_library(wheel_names: list[str]) -> None:
    assert not [name for name in wheel_names if "csrc" in name]


def test_source_archive_holds_the_sources_of_the_library(archives: tuple[Path, Path]) -> None:
    tracked = git_files()
    if tracked is None:
        pytest.skip("git does not know this checkout")
    wanted = {name for name in tracked if is_source(name)}
    assert "runtime/csrc/CMakeLists.txt" in wanted
    names = names_in(archives[0])
    assert wanted <= names
    # Nothing that was built in a checkout: an archive is the same wherever it is made.
    assert {name for name in names if name.startswith("runtime/csrc/editable/")} <= wanted
    assert not [name for name in names if name.endswith((".so", ".o"))]


@pytest.mark.parametrize("folder", FOLDERS)
def test_wheel_holds_the_linked_folders(wheel_names: list[str], folder: str) -> None:
    assert f"spq_graph/{folder}/__init__.py" in wheel_names


@pytest.mark.parametrize(
    "pattern", ["spq_graph/views/templates/*", "spq_graph/documents/presets/*", "models/reference/*"]
)
def test_wheel_holds_data_files(wheel_names: list[str], pattern: str) -> None:
    present = [path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern) if path.is_file()]
    if not present:
        pytest.skip(f"this checkout has no {pattern}")
    assert {f"spq_graph/{name.removeprefix('spq_graph/')}" for name in present} <= set(wheel_names)


def test_source_archive_holds_each_folder_once(archives: tuple[Path, Path]) -> None:
    names = names_in(archives[0])
    for folder in FOLDERS:
        assert f"{folder}/__init__.py" in names
        assert not [name for name in names if name.startswith(f"spq_graph/{folder}")]


def test_metadata(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        metadata = HeaderParser().parsestr(wheel.read(f"{DIST_INFO}/METADATA").decode())
        scripts = wheel.read(f"{DIST_INFO}/entry_points.txt").decode()
    assert metadata["Version"] == spq_graph.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    extras = "cpu gpu openvino export gguf hub data dask eval notebook docs test"
    assert set(metadata.get_all("Provides-Extra", [])) == set(extras.split())
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert not [line for line in base if line.startswith(("torch", "transformers", "onnxruntime"))]
    assert "spq-graph = spq_graph.__main__:main" in scripts
