"""What the product refuses, read from its code: each sentence with its exit status and its remedies.

A refusal is a place in the code that makes an error of `spq_graph/terms/errors.py`. What an f-string puts in stands as
a word in capitals; what depends on a condition, or on who calls, stands as one sentence or one remedy for each.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from docs.sentences import Scope, Template, arguments_of, is_said, pattern, settings, settings_before, told, words

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("spq_graph", "passes", "runtime", "models")
BASE = "SpqError"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One way in which one place of the code refuses.

    Attributes:
        file, function: the place, relative to the repository, with the class before a method.
        first, last: its lines, counted from 1.
        error: name of the error's class.
        exit_code: what the shell gets.
        sentences: how what is wrong may be said.
        remedy: what to do about it, None where nothing is said.
    """

    file: str
    function: str
    first: int
    last: int
    error: str
    exit_code: int
    sentences: tuple[Template, ...]
    remedy: Template | None

    @property
    def place(self) -> str:
        """File and function."""
        return f"{self.file}:{self.function}"

    @property
    def name(self) -> str:
        """What tells this one from every other."""
        return f"{self.place}: {' / '.join(map(words, self.sentences))} -> {words(self.remedy or ())}"

    def told(self, what: str, remedy: str) -> bool:
        """Whether an error with these words is this refusal."""
        said = any(re.fullmatch(pattern(one), what, flags=re.DOTALL) for one in self.sentences)
        return said and re.fullmatch(pattern(self.remedy or ()), remedy, flags=re.DOTALL) is not None


@dataclass(slots=True)
class Function:
    """A function with the path of names that leads to it, and what it sets."""

    name: str
    node: ast.FunctionDef | ast.AsyncFunctionDef | None
    local: dict[str, list[ast.expr]] = field(default_factory=dict)

    def known_at(self, line: int) -> dict[str, list[ast.expr]]:
        """What names may stand for at one of its lines."""
        return self.local | (settings_before(self.node.body, line) if self.node is not None else {})


def errors_of(trees: Mapping[str, ast.Module]) -> dict[str, int]:
    """The error classes with their exit statuses."""
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found: dict[str, int] = {}
    while True:
        before = len(found)
        for node in classes:
            above = [base.id for base in node.bases if isinstance(base, ast.Name)]
            known = [found[base] for base in above if base in found]
            if node.name == BASE or known:
                own = settings(list(node.body)).get("exit_code", [])
                codes = [int(one.value) for one in own if isinstance(one, ast.Constant)]
                found[node.name] = [*codes, *known, 1][0]
        if len(found) == before:
            return found


def worded_by(trees: Mapping[str, ast.Module], errors: Iterable[str]) -> set[str]:
    """The error classes that find their words themselves: their refusal is where they hand them on, in `__init__`."""
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    own = {node.name for node in classes if any(getattr(one, "name", "") == "__init__" for one in node.body)}
    return own.intersection(errors) - {BASE}


def error_made(function: Function, call: ast.Call, errors: Mapping[str, int], worded: Collection[str]) -> str | None:
    """The class of the error whose words a call gives, None where it gives none."""
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    owner, _, method = function.name.rpartition(".")
    if name == method == "__init__" and owner in worded and call.args:
        return owner
    return name if name in errors and name not in worded and call.args else None


def calls_within(tree: ast.Module) -> Iterator[tuple[Function, ast.Call]]:
    """Calls of a file with the function around each."""

    def walk(node: ast.AST, around: Function) -> Iterator[tuple[Function, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            inner = around
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{around.name}.{child.name}" if around.name else child.name
                inner = Function(name, None, around.local)
                if not isinstance(child, ast.ClassDef):
                    inner = Function(name, child, around.local | settings(list(ast.walk(child))))
            if isinstance(child, ast.Call):
                yield around, child
            yield from walk(child, inner)

    yield from walk(tree, Function("", None))


@dataclass(frozen=True, slots=True)
class Module:
    """A file of ours as far as its refusals ask for it: its calls, what names mean in it, and what it imports."""

    calls: list[tuple[Function, ast.Call]]
    known: Mapping[str, list[ast.expr]]
    imported: frozenset[str]
    functions: Mapping[str, ast.FunctionDef | ast.AsyncFunctionDef]


def ways_in(function: Function, here: Module, modules: Collection[Module]) -> list[Mapping[str, list[Template]]]:
    """What the calls of a function say in its arguments; at least one, empty where none does.

    Those of its own file, and of a public function those of files that import one of its name.
    """
    if function.node is None:
        return [{}]
    own, found = function.name.removesuffix(".__init__").rpartition(".")[2], []  # a class is called by its own name
    others = () if own.startswith("_") or "." in function.name else modules
    for module in (here, *(one for one in others if one is not here and own in one.imported)):
        for around, call in module.calls:
            if own in (getattr(call.func, "id", ""), getattr(call.func, "attr", "")):
                scope = Scope({}, around.known_at(call.lineno), module.known, module.functions)
                given = {name: told(value, scope) for name, value in arguments_of(function.node, call).items()}
                found.append({name: said for name, said in given.items() if any(map(is_said, said))})
    return found or [{}]


def known_in(tree: ast.Module, trees: Mapping[str, ast.Module]) -> dict[str, list[ast.expr]]:
    """What a file sets at its top, and what it takes from other files of ours that set it there."""
    found: dict[str, list[ast.expr]] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spq_graph."):
            path = f"{str(node.module).replace('.', '/')}.py"
            other = trees.get(path) or trees.get(path.removeprefix("spq_graph/"))
            set_there = settings(list(other.body)) if other is not None else {}
            found |= {alias.asname or alias.name: set_there.get(alias.name, []) for alias in node.names}
    return found | settings(list(tree.body))


def refusals_in(trees: Mapping[str, ast.Module]) -> Iterator[Refusal]:
    """The refusals of files, from top to bottom of each. What only tells another error again is none."""
    errors = errors_of(trees)
    worded = worded_by(trees, errors)
    modules = {
        file: Module(list(calls_within(tree)), known_in(tree, trees), frozenset(imported_by(tree)), functions_of(tree))
        for file, tree in trees.items()
    }
    for file, module in modules.items():
        for function, call in module.calls:
            name = error_made(function, call, errors, worded)
            if name is not None:
                yield from refusals_at(file, function, call, (name, errors[name]), module, modules.values())


def functions_of(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions of a file, by name."""
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def imported_by(tree: ast.Module) -> Iterator[str]:
    """Names that a file takes from others."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)


def refusals_at(
    file: str, function: Function, call: ast.Call, error: tuple[str, int], here: Module, modules: Collection[Module]
) -> Iterator[Refusal]:
    """The refusals of one place, whose error has a name and an exit status."""
    remedy = next((one.value for one in call.keywords if one.arg == "remedy"), None)
    if isinstance(call.args[0], ast.Attribute) and isinstance(remedy, ast.Attribute):
        return
    found: dict[tuple[tuple[Template, ...], Template], None] = {}
    for arguments in ways_in(function, here, modules):
        scope = Scope(arguments, function.known_at(call.lineno), here.known, here.functions)
        sentences = tuple(told(call.args[0], scope))
        found |= dict.fromkeys((sentences, one) for one in told(remedy, scope))
    for sentences, one in found:
        last = call.end_lineno or call.lineno
        yield Refusal(file, function.name, call.lineno, last, *error, sentences, one or None)


@cache
def refusals() -> tuple[Refusal, ...]:
    """All of them, by file and line."""
    files = sorted(
        file
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        if not any(part.is_symlink() for part in file.parents)
    )
    trees = {one.relative_to(ROOT).as_posix(): ast.parse(one.read_text(encoding="utf-8")) for one in files}
    return tuple(sorted(refusals_in(trees), key=lambda one: (one.file, one.first)))


def question_of(folder: str) -> str:
    """What a folder asks, by its own docstring."""
    doc = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text(encoding="utf-8"))) or folder
    return " ".join(doc.partition("\n\n")[0].split())


def cell(text: str) -> str:
    """Text as it stands, in a cell of a table; what is between backquotes is code already."""
    parts = text.replace("|", "\\|").split("`")
    return "`".join(part if number % 2 else re.sub(r"([*<])", r"\\\1", part) for number, part in enumerate(parts))


def page() -> list[str]:
    """The tables of all refusals, by the folder whose question stood open."""
    lines = []
    for folder, inside in itertools.groupby(refusals(), key=lambda one: str(Path(one.file).parent)):
        lines += ["", f"## {question_of(folder)}", "", "| what is said | what to do | exit |", "|---|---|---|"]
        for one in inside:
            said = "<br>".join(cell(words(sentence)) for sentence in one.sentences)
            row = f"| {said} | {cell(words(one.remedy or ()))} | {one.exit_code} |"
            lines += [row] if row not in lines else []
    return lines
