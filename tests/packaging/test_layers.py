"""Who may import whom is said by folder: a new file needs no line in pyproject.toml, and a wrong import is named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="import-linter is for those who change the code")

ROOT = Path(__file__).resolve().parents[2]
LINKED = ("passes", "runtime", "models")
# An editable installation finds its own checkout wherever one stands: here the copy counts.
LINT = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
from importlinter.cli import lint_imports
sys.exit(lint_imports(no_cache=True))
"""
NEW = '"""A file that was not there."""\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The code and its contracts, to be changed."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    skipped = shutil.ignore_patterns("__pycache__", "lib", "csrc", "reference")
    for folder in ("spq_graph", *LINKED):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=skipped)
    return tmp_path


def lint(checkout: Path) -> tuple[int, str]:
    """Exit status and output, with lines and spaces as they fell out for the width of a terminal taken away."""
    done = subprocess.run([sys.executable, "-c", LINT], cwd=checkout, capture_output=True, text=True)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def folders(checkout: Path) -> list[Path]:
    """Every package whose files are not folders themselves; links are followed nowhere."""
    packages = [
        file.parent
        for top in ("spq_graph", *LINKED)
        for file in (checkout / top).rglob("__init__.py")
        if not any(part.is_symlink() for part in file.parents)
    ]
    return [folder for folder in packages if folder.name not in ("spq_graph", "passes", "runtime")]


def test_a_new_file_needs_no_line(checkout: Path) -> None:
    added = [folder / "newcomer.py" for folder in folders(checkout)]
    assert len(added) > 20
    for file in added:
        file.write_text(NEW, encoding="utf-8")
    status, output = lint(checkout)
    assert status == 0, output
    assert " 0 broken." in output


@pytest.mark.parametrize("folder", ["spq_graph", "passes", "runtime"])
def test_a_file_beside_the_folders_has_no_place(checkout: Path, folder: str) -> None:
    (checkout / folder / "newcomer.py").write_text(NEW, encoding="utf-8")
    status, output = lint(checkout)
    assert status != 0
    assert "newcomer" in output


def test_remedies_and_changes_have_their_place_already(checkout: Path) -> None:
    for folder in ("spq_graph/remedies", "passes/changes"):
        (checkout / folder).mkdir(exist_ok=True)
        (checkout / folder / "__init__.py").write_text(NEW, encoding="utf-8")
        (checkout / folder / "newcomer.py").write_text(NEW, encoding="utf-8")
    assert lint(checkout)[0] == 0
    (checkout / "spq_graph" / "remedies" / "newcomer.py").write_text(f"{NEW}import json\n", encoding="utf-8")
    status, output = lint(checkout)
    assert status != 0
    assert "spq_graph.remedies.newcomer -> json" in output


# What must not be: the folder that gets a file, what the file imports, and how the breach is told.
BREACHES = [
    (
        "spq_graph/terms",
        "from spq_graph.documents import plan",
        "spq_graph.terms is not allowed to import spq_graph.documents",
    ),
    (
        "spq_graph/views",
        "from spq_graph.workbench import streams",
        "spq_graph.views is not allowed to import spq_graph.workbench",
    ),
    ("spq_graph/jobs", "from spq_graph.cli import options", "spq_graph.jobs is not allowed to import spq_graph.cli"),
    (
        "runtime/sessions",
        "from spq_graph.passes.base import values",
        "spq_graph.runtime is not allowed to import spq_graph.passes",
    ),
    (
        "passes/numbers",
        "from spq_graph.passes.base import values",
        "spq_graph.passes.numbers is not allowed to import spq_graph.passes.base",
    ),
    (
        "passes/find",
        "from spq_graph.passes.forms import encode",
        "spq_graph.passes.find is not allowed to import spq_graph.passes.forms",
    ),
    (
        "runtime/text",
        "from spq_graph.runtime.sessions import session",
        "spq_graph.runtime.text is not allowed to import spq_graph.runtime.sessions",
    ),
    ("spq_graph/jobs", "import onnxruntime", "spq_graph.jobs.newcomer -> onnxruntime"),
    ("spq_graph/workbench", "import transformers", "spq_graph.workbench.newcomer -> transformers"),
    ("runtime/measures", "import torch", "spq_graph.runtime.measures.newcomer -> torch"),
    ("spq_graph/jobs", "import typer", "spq_graph.jobs.newcomer -> typer"),
    ("spq_graph/workbench", "from rich import console", "spq_graph.workbench.newcomer -> rich"),
    ("passes/find", "import onnxruntime", "spq_graph.passes.find.newcomer -> onnxruntime"),
    ("spq_graph/documents", "import onnx_ir", "spq_graph.documents.newcomer -> onnx_ir"),
    ("spq_graph/decisions", "import json", "spq_graph.decisions.newcomer -> json"),
    ("spq_graph/decisions", "import os", "spq_graph.decisions.newcomer -> os"),
]


def test_every_wrong_import_is_named(checkout: Path) -> None:
    for folder, line, _ in BREACHES:
        file = checkout / folder / "newcomer.py"
        before = file.read_text(encoding="utf-8") if file.is_file() else NEW
        file.write_text(f"{before}{line}\n", encoding="utf-8")
    status, output = lint(checkout)
    assert status != 0
    assert [told for _, _, told in BREACHES if told not in output] == []


def test_files_that_import_each_other_are_named(checkout: Path) -> None:
    for one, other in (("here", "there"), ("there", "here")):
        text = f"{NEW}from spq_graph.passes.forms import {other}\n"
        (checkout / "passes" / "forms" / f"{one}.py").write_text(text, encoding="utf-8")
    status, output = lint(checkout)
    assert status != 0
    assert "No cycles are allowed in spq_graph.passes.forms." in output
