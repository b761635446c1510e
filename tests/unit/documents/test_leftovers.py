"""What a killed run left is told from what another still writes, and removed or brought back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from spq_graph.documents import leftovers
from spq_graph.documents.leftovers import claimed, locked, part_of, recover_files, released, sweep_parts
from spq_graph.documents.staging import written
from spq_graph.terms.errors import OutputError
from tests.conftest import ROOT

if os.name == "nt":
    pytest.skip("nothing tells what is in use there", allow_module_level=True)

TOKEN = "0123456789abcdef"

HOLDS = """
import sys, time
from spq_graph.documents.leftovers import temporary_folder
with temporary_folder() as folder:
    print(folder, flush=True)
    time.sleep(60)
"""
LOOKS = """
from spq_graph.documents.leftovers import temporary_folder
with temporary_folder() as folder:
    print(folder, flush=True)
"""


def test_every_temporary_folder_is_one_that_the_next_run_can_clear_up() -> None:
    """Those of the standard library are locked by nobody, so that nobody may take them for left behind."""
    found = [
        f"{file.relative_to(ROOT)}: {word}"
        for package in ("spq_graph", "passes", "runtime", "models")
        for file in (ROOT / package).rglob("*.py")
        for word in ("TemporaryDirectory", "mkdtemp")
        if word in file.read_text(encoding="utf-8")
    ]
    assert found == []


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_temporary_folders_of_killed_runs_go_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "spq-graph-notes").mkdir()  # somebody's own
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    def look() -> None:
        subprocess.run([sys.executable, "-c", LOOKS], env=environment, cwd=ROOT, check=True, capture_output=True)

    with subprocess.Popen(
        [sys.executable, "-c", HOLDS], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        look()
        assert names_in(tmp_path) == sorted([theirs.name, "spq-graph-notes"])
        other.kill()
        other.wait()
    look()
    assert names_in(tmp_path) == ["spq-graph-notes"]


def test_no_place_for_temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(OutputError, match="no temporary folder can be made") as caught, leftovers.temporary_folder():
        pass
    assert caught.value.where == str(tmp_path / "absent")
    assert "TMPDIR" in caught.value.remedy


def test_a_folder_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []

    def slow(path: Path) -> int | None:
        if not seen:
            path.rmdir()
        seen.append(path)
        return locked(path)

    monkeypatch.setattr(leftovers, "locked", slow)
    folder, lock = claimed(tmp_path / "made-")
    released(lock)
    assert names_in(tmp_path) == [folder.name]
    assert len(seen) == 2


class TestFiles:
    """Two files that are written together: what a kill in each place leaves, and what becomes of it."""

    @pytest.fixture
    def pair(self, tmp_path: Path) -> tuple[Path, Path]:
        files = tmp_path / "ranges.json", tmp_path / "ranges.safetensors"
        written({files[0]: b"old", files[1]: b"old arrays"})
        return files

    def test_cut_while_writing(self, pair: tuple[Path, Path]) -> None:
        part_of(pair[0], TOKEN).write_bytes(b"ne")
        recover_files(pair)
        assert [file.read_bytes() for file in pair] == [b"old", b"old arrays"]
        assert len(names_in(pair[0].parent)) == 2

    def test_cut_between_the_names(self, pair: tuple[Path, Path]) -> None:
        """The first file has its name, so both were complete: the other gets its own."""
        pair[0].write_bytes(b"new")
        part_of(pair[1], TOKEN).write_bytes(b"new arrays")
        recover_files(pair)
        assert [file.read_bytes() for file in pair] == [b"new", b"new arrays"]
        assert len(names_in(pair[0].parent)) == 2

    def test_what_was_written_since_stays(self, pair: tuple[Path, Path]) -> None:
        part = part_of(pair[1], TOKEN)
        part.write_bytes(b"new arrays")
        os.utime(part, ns=(0, 0))
        recover_files(pair)
        assert [file.read_bytes() for file in pair] == [b"old", b"old arrays"]
        assert len(names_in(pair[0].parent)) == 2

    def test_what_another_run_writes_is_left(self, pair: tuple[Path, Path]) -> None:
        part = part_of(pair[0], TOKEN)
        part.write_bytes(b"half")
        lock = locked(part)
        recover_files(pair)
        sweep_parts(part.parent)
        assert part.exists()
        released(lock)
        sweep_parts(part.parent)
        assert not part.exists()

    def test_the_next_writing_clears_up(self, pair: tuple[Path, Path]) -> None:
        part_of(pair[0], TOKEN).write_bytes(b"half")
        written({pair[0]: b"new", pair[1]: b"new arrays"})
        assert names_in(pair[0].parent) == ["ranges.json", "ranges.safetensors"]
