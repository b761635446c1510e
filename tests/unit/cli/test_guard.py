"""What nobody foresaw is told as a fault of ours, with a place and a way to report it; never as a traceback."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from unittest import mock

import pytest
from rich.console import Console

from spq_graph.cli.guard import errors_for_people
from spq_graph.cli.terminal import answer, print_json
from spq_graph.documents.parsed import parse_json


class Panic(BaseException):
    """As pyo3 raises one, which is no Exception."""


def told(error: BaseException) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=80)
    with pytest.raises(SystemExit) as stop, errors_for_people(console):
        raise error
    assert isinstance(console.file, io.StringIO)
    assert isinstance(stop.value.code, int)
    return stop.value.code, console.file.getvalue()


def ours(monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """What is said of an IndexError that comes up in a file of ours."""
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(sys, "argv", ["spq-graph", "inspect", "a b.onnx"])
    console = Console(file=io.StringIO(), width=80)
    with (
        mock.patch("spq_graph.documents.parsed.json.loads", side_effect=IndexError("tuple index\nout of range")),
        pytest.raises(SystemExit) as stop,
        errors_for_people(console),
    ):
        parse_json("{}")
    assert stop.value.code == 1
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_fault_has_a_place_and_a_file_with_the_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = ours(monkeypatch, tmp_path)
    assert "this is a fault of spq-graph, not of yours (IndexError: tuple index)" in said
    assert "spq_graph/documents/parsed.py:" in said
    assert "Traceback" not in said
    (file,) = tmp_path.iterdir()
    assert str(file) in said
    kept = file.read_text()
    assert "spq-graph inspect 'a b.onnx'" in kept
    assert "IndexError: tuple index" in kept


def test_a_fault_is_told_where_no_file_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = ours(monkeypatch, tmp_path / "nothing")
    assert "report it with this message" in said


def test_a_panic_of_a_library_is_told_too() -> None:
    code, said = told(Panic("index out of bounds"))
    assert code == 1
    assert "a fault of spq-graph" in said
    assert "Panic: index out of bounds" in said


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("8 GiB"), "there is not enough memory: 8 GiB"),
        (OSError(28, "No space left on device", "/tmp/x"), "the system refuses: No space left on device"),
        (OSError("8192 requested and 0 written"), "8192 requested"),
    ],
)
def test_what_the_machine_refuses_is_no_fault(error: BaseException, says: str) -> None:
    code, said = told(error)
    assert (code, says in said, "fault" in said, "try: " in said) == (1, True, False, True)


def test_exits_pass() -> None:
    with pytest.raises(SystemExit) as stop, errors_for_people(Console(file=io.StringIO())):
        sys.exit(7)
    assert stop.value.code == 7


def test_nothing_that_is_printed_acts_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[31m\u202e\x9b\ud800"
    print_json({"name": hostile})
    said = capsys.readouterr().out
    assert json.loads(said) == {"name": hostile}
    answer({}, [hostile], as_json=False)
    said += capsys.readouterr().out
    assert not {c for c in said if not c.isprintable()} - {"\n"}
