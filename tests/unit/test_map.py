"""CONTRIBUTING.md has a map of the folders: it is the tree's, and what it says of a folder is what lies there."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("spq_graph", "passes", "runtime", "models")
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAP = dict(re.findall(r"^\| `([\w/]+)` \| (.+) \|$", PAGE, flags=re.MULTILINE))
LONGEST_FILE = 300


def files_below(*folders: str) -> list[Path]:
    """Python files, not by way of the links that lie in a checkout."""
    found = (file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return sorted(file for file in found if not any(part.is_symlink() for part in file.parents))


FILES = {
    file.relative_to(ROOT).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files_below(*PACKAGES)
}


def calls_in(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Calls, with the last part of what is called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            yield name, node


def folders_where(holds: Callable[[ast.Module], bool]) -> set[str]:
    """The folders of the files of which something holds."""
    return {Path(file).parent.as_posix() for file, tree in FILES.items() if holds(tree)}


class TestTable:
    def test_every_folder_is_on_it_and_every_row_is_a_folder(self) -> None:
        packages = {Path(file).parent.as_posix() for file in FILES if "/reference/" not in file}
        assert {row for row in MAP if row.split("/")[0] in PACKAGES} == packages
        assert [row for row in MAP if not (ROOT / row).is_dir()] == []

    def test_folders_of_tests_are_on_it(self) -> None:
        found = {file.relative_to(ROOT).parts[1] for file in files_below("tests") if file.parent.name != "tests"}
        assert {row.removeprefix("tests/") for row in MAP if row.startswith("tests/")} == found

    @pytest.mark.parametrize("row", [row for row in MAP if row.split("/")[0] in PACKAGES])
    def test_a_package_says_the_same_of_itself(self, row: str) -> None:
        doc = ast.get_docstring(FILES[f"{row}/__init__.py"]) or ""
        assert " ".join(doc.partition("\n\n")[0].split()) == MAP[row]

    @pytest.mark.parametrize("row", [row for row in MAP if row.split("/")[0] in PACKAGES and "/" in row])
    def test_a_package_holds_nothing_itself(self, row: str) -> None:
        assert len(FILES[f"{row}/__init__.py"].body) == 1

    def test_unit_tests_have_the_folders_of_what_they_test(self) -> None:
        below = {file.parent.relative_to(ROOT / "tests" / "unit").as_posix() for file in files_below("tests/unit")} - {
            "."
        }
        assert [folder for folder in below if not {folder, f"spq_graph/{folder}"} & set(MAP)] == []


class TestAnswers:
    """What a stranger looks for lies where the names of folders say."""

    def test_what_a_verb_does_is_a_job(self) -> None:
        from spq_graph.cli.app import app

        verbs = [command.callback for command in app.registered_commands if command.callback is not None]
        assert len(verbs) > 10
        assert [verb.__name__ for verb in verbs if not jobs_of(verb)] == []

    def test_tables_are_printed_from_views(self) -> None:
        found = folders_where(lambda tree: any(name == "Table" for name, _ in calls_in(tree)))
        assert found == {"spq_graph/views"}

    def test_a_pair_is_written_and_checked_in_forms(self) -> None:
        writing = {
            file for file, tree in FILES.items() if any(writes(call, "QuantizeLinear") for _, call in calls_in(tree))
        }
        assert {Path(file).parent.as_posix() for file in writing} == {"passes/forms"}
        assert [file for file in writing if not looks_for(FILES[file], "QuantizeLinear")] == []
        undoing = folders_where(lambda tree: any(writes(call, "DequantizeLinear") for _, call in calls_in(tree)))
        assert undoing == {"passes/forms"}

    def test_rules_give_their_reasons_in_decisions(self) -> None:
        def gives_reason(tree: ast.Module) -> bool:
            assigned = (t for node in ast.walk(tree) if isinstance(node, ast.Assign) for t in node.targets)
            targets = (part for target in assigned for part in ast.walk(target))
            return any(isinstance(part, ast.Attribute) and part.attr == "reason" for part in targets)

        assert folders_where(gives_reason) == {"spq_graph/decisions"}

    def test_pieces_are_cut_by_passes_and_run_by_sessions(self) -> None:
        assert folders_where(lambda tree: any(name == "Segmented" for name, _ in calls_in(tree))) == {"passes/pieces"}

        def runs_them(tree: ast.Module) -> bool:
            classes = (node for node in tree.body if isinstance(node, ast.ClassDef))
            starts = (f for c in classes for f in c.body if isinstance(f, ast.FunctionDef) and f.name == "__init__")
            taken = (a.annotation for f in starts for a in f.args.args if a.annotation is not None)
            return any("Segmented" in ast.unparse(annotation) for annotation in taken)

        assert folders_where(runs_them) == {"runtime/sessions"}


def jobs_of(verb: Callable[..., Any]) -> list[str]:
    """Functions of `spq_graph/jobs` that a verb calls, itself or by what stands beside it in its file."""
    whole = ast.parse(inspect.getsource(inspect.getmodule(verb)))  # type: ignore[arg-type]
    beside = {node.name: node for node in whole.body if isinstance(node, ast.FunctionDef)}
    pending, seen, found = [verb.__name__], set(), []
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            names, modules = imported_jobs([*whole.body, *ast.walk(beside[name])])
            for called, call in calls_in(beside[name]):
                if isinstance(call.func, ast.Name) and called in names:
                    found.append(names[called])
                elif isinstance(call.func, ast.Name) and called in beside:
                    pending.append(called)
                elif isinstance(call.func, ast.Attribute) and (module := modules.get(ast.unparse(call.func.value))):
                    found.append((module, called))
    return [name for module, name in found if name in functions_of(f"spq_graph/jobs/{module}.py")]


def imported_jobs(nodes: list[ast.AST]) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """What is imported from `spq_graph/jobs`: module and function by the name that they have here, and modules."""
    names: dict[str, tuple[str, str]] = {}
    modules: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "spq_graph.jobs":
            modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spq_graph.jobs."):
            module = (node.module or "").rsplit(".", 1)[1]
            names |= {alias.asname or alias.name: (module, alias.name) for alias in node.names}
    return names, modules


def functions_of(file: str) -> set[str]:
    return {node.name for node in FILES[file].body if isinstance(node, ast.FunctionDef)}


def writes(call: ast.Call, op_type: str) -> bool:
    """Whether a call adds a node of this type to a graph."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    operators = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
    return name in ("add", "op", "node", "Node", "substitute") and op_type in operators


def looks_for(tree: ast.Module, op_type: str) -> bool:
    """Whether a file names this type of node otherwise than to write one."""
    written = {id(part) for _, call in calls_in(tree) if writes(call, op_type) for part in call.args}
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == op_type)
    return any(id(node) not in written for node in found)


def test_files_are_short() -> None:
    long = {
        file.relative_to(ROOT).as_posix(): lines
        for file in files_below(*PACKAGES, "tests", "benchmarks", "docs")
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert long == {}
