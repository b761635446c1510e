"""What `from spq_graph import ...` gives: at once, by name, and only what is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

import spq_graph

NAMES = sorted(set(spq_graph.__all__) - {"__version__"})
JOBS = {"quantize", "export", "calibrate", "merge", "plan", "apply", "verify"}
JOBS |= {"inspect", "compare", "evaluate", "generate", "bench", "doctor"}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name: str) -> None:
    assert getattr(spq_graph, name) is getattr(import_module(spq_graph._HOMES[name]), name)


def test_the_jobs_are_among_them() -> None:
    assert set(spq_graph.__all__) >= JOBS
    assert set(dir(spq_graph)) >= {*JOBS, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        spq_graph.quantise  # noqa: B018


def test_no_module_hides_a_name() -> None:
    """A module of that name in the package would hide the function once it is imported."""
    assert [name for name in NAMES if find_spec(f"spq_graph.{name}") is not None] == []


def test_what_types_say_is_what_is_imported() -> None:
    tree = ast.parse(Path(spq_graph.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    said = {alias.name: node.module for node in imports for alias in node.names}
    assert said == spq_graph._HOMES
    constants = sorted(name for name in said if name.isupper())
    assert spq_graph.__all__ == [*constants, *sorted({*said, "__version__"} - {*constants})]


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    loaded = set(python("import spq_graph, sys; print(*sys.modules)").split())
    assert not loaded & {"numpy", "onnx", "onnx_ir", "onnxruntime", "pydantic", "rich", "torch", "typer"}
    loaded = set(python("from spq_graph import Recipe, SpqError; import sys; print(*sys.modules)").split())
    assert "pydantic" in loaded
    assert not loaded & {"onnx", "onnx_ir", "onnxruntime", "torch", "typer"}


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
