"""The notebooks of docs run from top to bottom, in one folder, on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
for needed in ("torch", "onnxruntime", "pandas", "nbformat", "ipykernel"):
    pytest.importorskip(needed)
nbclient = pytest.importorskip("nbclient")

# The first one exports the model, which the others find.
NOTEBOOKS = ("quantize", "sensitivity", "serve")


def read(name: str) -> Any:
    import nbformat

    return nbformat.read(ROOT / "docs" / "notebooks" / f"{name}.ipynb", as_version=4)


def test_the_pages_name_every_notebook() -> None:
    assert sorted(path.stem for path in (ROOT / "docs" / "notebooks").glob("*")) == sorted(NOTEBOOKS)
    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert all(f"notebooks/{name}.ipynb" in page for name in NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_none_holds_what_a_run_left(name: str) -> None:
    """Figures of one machine would be read as those of every one, and change with each run."""
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert all((cell.outputs, cell.execution_count) == ([], None) for cell in cells)


def test_they_run(tmp_path: Path) -> None:
    for name in NOTEBOOKS:
        book = read(name)
        nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
        shown = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
        assert shown[-1], f"{name}: its last cell shows nothing"
    printed = "".join(out.get("text", "") for outputs in shown for out in outputs)
    assert printed.count("tokens/s") == 6  # three prompts, before and after
