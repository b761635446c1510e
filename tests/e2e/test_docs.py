"""The documentation is true: its pages build, its commands parse, its code runs, and its reference is the schema."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

import spq_graph
from spq_graph.cli.app import app
from spq_graph.jobs.plan import plan
from tests.conftest import ROOT, write_tokenizer
from tests.support.command import Case

DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}


def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGES[page], flags=re.DOTALL)


@pytest.mark.parametrize("page", ["recipe.md", "recipe.schema.json", "plan.md", "refusals.md"])
def test_the_reference_is_the_schema(page: str) -> None:
    """After a change on purpose: python docs/reference.py"""
    assert (DOCS / page).read_text(encoding="utf-8") == reference().PAGES[page]()


def test_every_key_of_a_plan_is_described() -> None:
    empty = [line for line in PAGES["plan.md"].splitlines() if re.match(r"\| `\w+` \| .* \|  \|$", line)]
    assert empty == ["| `schema` | `spq-graph/plan/1` |  |"]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_parse(page: str) -> None:
    import typer

    group = typer.main.get_command(app)
    for line in re.findall(r"^spq-graph .*$", PAGES[page], flags=re.MULTILINE):
        verb, *arguments = shlex.split(line, comments=True)[1:]
        group.commands[verb].make_context(verb, arguments)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", ["report.md", "annotations.md"])
def test_the_code_runs_on_an_artifact(case: Case, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas", reason="to_pandas() wants pandas")
    monkeypatch.chdir(case.out.parent)
    for code in code_of(page):
        exec(compile(code, page, "exec"), {})


def test_the_code_runs_from_a_model(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(spq_graph, "plan", plan)
    (tmp_path / "exported").mkdir()
    write_tokenizer(tmp_path / "exported")
    for code in code_of("integrating.md")[1:]:
        for name, file in (
            ("exported/model.onnx", case.model),
            ("mine.txt", case.calibration),
            ("other.txt", case.text),
        ):
            code = code.replace(name, str(file))  # noqa: PLW2901
        exec(compile(code, "integrating.md", "exec"), {})
    assert (tmp_path / "applied.onnx").is_file()


@pytest.mark.slow
def test_the_script_quantizes_and_evaluates_the_embedded_model(
    exports: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    script = code_of("integrating.md")[0]
    assert len(script.splitlines()) <= 15
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "integrating.md", "exec"), {})
    *kept, figures = capsys.readouterr().out.splitlines()
    assert kept
    assert all("mlp.down_proj" in line for line in kept)
    assert float(re.findall(r"KL ([\d.]+)", figures)[0]) < 0.05


def test_the_pass_that_is_shown_does_what_it_says() -> None:
    (code,) = code_of("passes.md")
    scope: dict[str, Any] = {"__name__": "passes"}
    exec(compile(code, "passes.md", "exec"), scope)
    value = ir.Value(name="x")
    middle = ir.node("Identity", [value], name="copy")
    last = ir.node("Relu", [middle.outputs[0]], name="relu")
    graph = ir.Graph([value], last.outputs, nodes=[middle, last], name="g", opset_imports={"": 21})
    model = ir.Model(graph, ir_version=10)
    assert scope["DropIdentity"]()(model).modified
    assert [node.name for node in model.graph] == ["relu"]
    assert not scope["DropIdentity"]()(model).modified


def test_the_api_has_every_name_that_a_program_imports() -> None:
    on_page = re.findall(r"^::: spq_graph\.(\w+)$", PAGES["api.md"], flags=re.MULTILINE)
    without_docstring = {"__version__", "FP32", "EVERYWHERE", "SPIKE_AWARE", "WEIGHT_ONLY"}
    assert sorted(on_page) == sorted(set(spq_graph.__all__) - without_docstring)


def test_every_page_stands_in_the_navigation() -> None:
    listed = re.findall(r"^  - .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(PAGES)


def test_the_pages_build(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs mkdocs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert (tmp_path / "report" / "index.html").is_file()
