"""What an expression of the code may say: sentences, in which a word in capitals stands for a value."""

from __future__ import annotations

import ast
import builtins
import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

# Words for what stands in a sentence, where the name in the code says less.
WORDS = {"cause": "REASON", "error": "REASON", "strerror": "REASON", "len": "NUMBER", "text": "VALUE", "object": "BYTE"}


@dataclass(frozen=True, slots=True)
class Hole:
    """Where a sentence has a value, and the word that stands for it."""

    word: str


Template = tuple[str | Hole, ...]


@dataclass(slots=True)
class Scope:
    """What names mean where an error is made: the arguments of one call, what the function sets, the module's own."""

    arguments: Mapping[str, list[Template]]
    local: Mapping[str, list[ast.expr]]
    module: Mapping[str, list[ast.expr]]
    functions: Mapping[str, ast.FunctionDef | ast.AsyncFunctionDef] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()

    def values(self, name: str) -> list[ast.expr]:
        """The expressions that a name may stand for, none where that is not known."""
        if name in self.seen:
            return []
        return self.local.get(name) or self.module.get(name) or []

    def without(self, name: str) -> Scope:
        """The same, in which a name is no longer looked up."""
        return replace(self, seen=self.seen | {name})

    def within(self, name: str, call: ast.Call) -> Scope:
        """What names mean in a function of the file that is called here."""
        function = self.functions[name]
        given = {one: told(value, self) for one, value in arguments_of(function, call).items()}
        local = settings(list(ast.walk(function)))
        return Scope(given, local, self.module, self.functions, self.seen | {name})


def words(template: Template) -> str:
    """A sentence for people."""
    return "".join(part if isinstance(part, str) else part.word for part in template)


def pattern(template: Template) -> str:
    """A regular expression for what a sentence may become."""
    return "".join(re.escape(part) if isinstance(part, str) else ".*" for part in template)


def called(call: ast.Call) -> ast.expr:
    """What a call is about: what it joins, counts or turns into text, or whose method it is."""
    match call.func, call.args:
        case ast.Name(id="map"), [_, inner]:
            return inner
        case ast.Name(id="len"), _:
            return call.func
        case ast.Name(id=name), [inner, *_] if hasattr(builtins, name) or name == "first_line":
            return inner
        case ast.Attribute(attr="join"), [inner]:
            return inner
        case ast.Attribute(value=ast.expr() as owner, attr=name), _ if name not in WORDS:
            return owner
    return call.func


# What an expression is about, by its kind; a name, an attribute or a number is about itself.
INNER: Mapping[type[ast.expr], Callable[[Any], ast.expr]] = {
    ast.Call: called,
    ast.Subscript: lambda node: node.value,
    ast.Starred: lambda node: node.value,
    ast.UnaryOp: lambda node: node.operand,
    ast.BoolOp: lambda node: node.values[0],
    ast.IfExp: lambda node: node.body,
    ast.ListComp: lambda node: node.generators[0].iter,
    ast.GeneratorExp: lambda node: node.generators[0].iter,
}
# Attributes that say less than what they belong to.
PLAIN = {"key", "name", "what", "__name__", "stem", "shape"}


def word_of(node: ast.expr) -> str:
    """The word for a value in a sentence."""
    while (inner := INNER.get(type(node))) or (isinstance(node, ast.Attribute) and node.attr in PLAIN):
        node = inner(node) if inner else node.value  # type: ignore[attr-defined]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        return f"{word_of(node.left)} {'+' if isinstance(node.op, ast.Add) else '-'} {word_of(node.right)}"
    if isinstance(node, ast.BinOp):
        return word_of(node.left)
    name = str(getattr(node, "id", getattr(node, "attr", getattr(node, "value", "value"))))
    return WORDS.get(name, name.strip("_").upper())


def told(node: ast.expr | None, scope: Scope) -> list[Template]:
    """What an expression may say."""
    found: list[Template] = [(Hole(word_of(node)),)] if node is not None else [()]
    match node:
        case ast.Constant(value=str(text)):
            found = [(text,)]
        case ast.JoinedStr(values=parts):
            found = joined([told(part, scope) for part in parts])
        case ast.FormattedValue(value=inner):
            found = told(inner, scope)
        case ast.BinOp(left=left, op=ast.Add(), right=right) if is_text(left) or is_text(right):
            found = joined([told(left, scope), told(right, scope)])
        case ast.IfExp(body=body, orelse=other) | ast.BoolOp(op=ast.Or(), values=[body, other]) if says(node, scope):
            found = told(body, scope) + told(other, scope)
        case ast.Name(id=name) if name in scope.arguments:
            found = scope.arguments[name]
        case ast.Name(id=name) if says(node, scope):
            found = [one for value in scope.values(name) for one in told(value, scope.without(name))]
        case ast.Call(func=ast.Name(id=name)) if says(node, scope):
            inner = scope.within(name, node)
            found = [one for value in returned(scope.functions[name]) for one in told(value, inner)]
    return list(dict.fromkeys(found))


def is_text(node: ast.expr) -> bool:
    """Whether an expression is plainly a sentence or a part of one."""
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return is_text(left) or is_text(right)
        case ast.IfExp(body=body, orelse=other):
            return is_text(body) or is_text(other)
    return False


def says(node: ast.expr, scope: Scope) -> bool:
    """Whether an expression is a sentence or a part of one, by what its names stand for, or what it calls returns."""
    match node:
        case ast.IfExp(body=body, orelse=other):
            return says(body, scope) or says(other, scope)
        case ast.BoolOp(op=ast.Or(), values=[body, other]):
            return says(body, scope) and says(other, scope)
        case ast.Name(id=name) if values := scope.values(name):
            return all(says(value, scope.without(name)) for value in values)
        case ast.Call(func=ast.Name(id=name)) if name in scope.functions and name not in scope.seen:
            values, inner = returned(scope.functions[name]), scope.within(name, node)
            return bool(values) and all(says(value, inner) for value in values)
    return is_text(node)


def returned(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    """What a function returns, at each place where it does and on both sides of what it chooses by."""
    values = [node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value is not None]
    return [
        one for value in values for one in ([value.body, value.orelse] if isinstance(value, ast.IfExp) else [value])
    ]


def arguments_of(function: ast.FunctionDef | ast.AsyncFunctionDef, call: ast.Call) -> dict[str, ast.expr]:
    """What one call gives to which parameter."""
    names = [one.arg for one in (*function.args.posonlyargs, *function.args.args) if one.arg not in ("self", "cls")]
    given = dict(zip(reversed(names), reversed(function.args.defaults), strict=False))
    given |= {
        one.arg: default
        for one, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        if default is not None
    }
    given |= dict(zip(names, call.args, strict=False))
    return given | {one.arg: one.value for one in call.keywords if one.arg}


def joined(parts: list[list[Template]]) -> list[Template]:
    """Every way to go through the parts of a sentence."""
    return [tuple(itertools.chain(*way)) for way in itertools.product(*parts)]


def settings(nodes: list[ast.AST]) -> dict[str, list[ast.expr]]:
    """What is given to which name, one by one or several at once."""
    found: dict[str, list[ast.expr]] = {}
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found.setdefault(name, []).append(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found.setdefault(name, []).append(value)
            case ast.NamedExpr(target=ast.Name(id=name), value=value):
                found.setdefault(name, []).append(value)
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                for one, value in zip(names, values, strict=False):
                    if isinstance(one, ast.Name):
                        found.setdefault(one.id, []).append(value)
    return found


def blocks_of(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The runs of statements inside of one."""
    for name in ("body", "orelse", "finalbody"):
        yield getattr(statement, name, [])
    for branch in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        yield branch.body


def settings_before(body: list[ast.stmt], line: int) -> dict[str, list[ast.expr]]:
    """What names may stand for at a line of a function: what was given to them last, on each way that leads there."""
    found: dict[str, list[ast.expr]] = {}
    for statement in body:
        if statement.lineno <= line <= (statement.end_lineno or line):
            for block in blocks_of(statement):
                if block and block[0].lineno <= line <= (block[-1].end_lineno or line):
                    found |= settings_before(block, line)
            return found
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            found |= settings([statement])
        else:
            for name, values in settings(list(ast.walk(statement))).items():
                found[name] = [*found.get(name, []), *values]
    return found


def is_said(template: Template) -> bool:
    """Whether there are words in it, and not a value alone."""
    return any(isinstance(part, str) for part in template)
