"""Makes a refusal happen and holds it to the place in the code that it is said to come from."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

from docs.refusals import Refusal, refusals
from spq_graph.terms.errors import SpqError
from tests.support.command import Result, spq

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "refusals"


def named(place: str, said: str = "", nth: int | None = None) -> Refusal:
    """The refusal at `file:function` whose sentence, or remedy, holds some words; `nth` where several say the same.

    Raises:
        LookupError: there is none, or more than one.
    """
    found = [one for one in refusals() if one.place == place and said in one.name.removeprefix(place)]
    if nth is not None:
        found = found[nth : nth + 1]
    if len(found) != 1:
        raise LookupError(f"{len(found)} refusals at {place} say {said!r}: {[one.name for one in found]}")
    return found[0]


@dataclass(frozen=True, slots=True)
class FollowedCase:
    """A test's mark: which refusal it follows, and why that cannot be done to the end, where it cannot."""

    file: str
    refusal: Refusal
    outside: str | None


def cases() -> Iterator[FollowedCase]:
    """What the tests of refusals say that they follow, read from their files."""
    for file in sorted(FOLDER.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = node.func if isinstance(node, ast.Call) else None
            if isinstance(node, ast.Call) and "follows" in (getattr(name, "id", ""), getattr(name, "attr", "")):
                more = {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
                outside = more.pop("outside", None)
                yield FollowedCase(file.name, named(*map(ast.literal_eval, node.args), **more), outside)


class Told:
    """A block that must end in one refusal; what was raised is `error` afterwards."""

    def __init__(self, expected: Refusal) -> None:
        self.expected = expected
        self.happened = False
        self.error: SpqError = SpqError("nothing was refused yet")
        self._made: dict[int, tuple[SpqError, str, int]] = {}
        self._recording = mock.patch.object(SpqError, "__init__", self._recorder(SpqError.__init__))

    def __enter__(self) -> Told:
        self._recording.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._recording.stop()
        if error is not None and not isinstance(error, SpqError):
            return False
        assert error is not None, f"nothing was refused: {self.expected.name}"
        self._check(error)
        return True

    def command(self, *arguments: object) -> Result:
        """Runs the command line, which must end in this refusal and its exit status, with no result printed."""
        told: list[SpqError] = []
        with self._recording, mock.patch("spq_graph.cli.guard.print_error", lambda error, _: told.append(error)):
            result = spq(*arguments)
        assert told, f"nothing was refused: {result}"
        assert (result.code, result.out) == (self.expected.exit_code, "")
        self._check(told[0])
        return result

    def _recorder(self, original: Callable[..., None]) -> Callable[..., None]:
        """Notes which line makes an error: one that a function returns is raised elsewhere."""

        def made(error: SpqError, *arguments: Any, **named: Any) -> None:
            original(error, *arguments, **named)
            frame = sys._getframe(1)
            self._made[id(error)] = error, frame.f_code.co_filename, frame.f_lineno

        return made

    def _check(self, error: SpqError) -> None:
        """It was made there, or tells again what was made there, in the words of the catalogue."""
        self.error = error
        at: list[str] = []
        source: BaseException | None = error
        while source is not None:
            if id(source) in self._made:
                _, file, line = self._made[id(source)]
                path = Path(file).resolve().relative_to(ROOT).as_posix()
                at.append(f"{path}:{line}")
                if path == self.expected.file and self.expected.first <= line <= self.expected.last:
                    break
            source = source.__cause__ or source.__context__
        assert source is not None, f"{error} was made at {at}, and not at {self.expected.name}"
        assert self.expected.told(error.what, error.remedy), (str(error), self.expected.name)
        self.happened = True


def written(path: Path, content: object) -> Path:
    """A file with this text, or with this as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path
