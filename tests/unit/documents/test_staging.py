"""Files and folders come into place whole, or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from spq_graph.documents.artifact import check_out
from spq_graph.documents.staging import staged, written
from spq_graph.terms.errors import OutputError
from tests.support.outs import earlier, listing


def stop_midway(staging: Path, stop: BaseException) -> None:
    (staging / "model.onnx").write_text("half")
    raise stop


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_moved_into_place_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with staged(out) as staging:
        (staging / "model.onnx").write_text("whole")
        assert not out.exists()
        assert staging.parent == out.parent
    assert listing(out.parent) == ["out", "out/model.onnx"]
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


def test_an_earlier_out_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = earlier(tmp_path / "out")
    with staged(out, force=True) as staging:
        (staging / "model.onnx").write_text("new")
        assert (out / "model.onnx").read_text() == "old"
    assert listing(tmp_path) == ["out", "out/model.onnx"]
    assert (out / "model.onnx").read_text() == "new"


@pytest.mark.parametrize("stop", [ValueError("wrong"), KeyboardInterrupt(), SystemExit(143)])
@pytest.mark.parametrize("before", [False, True])
def test_nothing_half_is_left(tmp_path: Path, stop: BaseException, before: bool) -> None:
    out = tmp_path / "out"
    if before:
        earlier(out)
    was = listing(tmp_path)
    with pytest.raises(type(stop)), staged(out) as staging:
        stop_midway(staging, stop)
    assert listing(tmp_path) == was


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path: Path, number: int) -> None:
    out = earlier(tmp_path / "out")
    with pytest.raises(OutputError, match="the disk is full; nothing was left behind"), staged(out) as staging:
        stop_midway(staging, OSError(number, os.strerror(number)))
    assert (out / "model.onnx").read_text() == "old"
    assert listing(tmp_path) == ["out", "out/model.onnx", "out/plan.json"]


def test_other_system_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), staged(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "denied", "somewhere")
    assert listing(tmp_path) == []


def test_an_earlier_out_comes_back_where_the_new_one_cannot_move_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = earlier(tmp_path / "out")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="input/output"), staged(out, force=True) as staging:
        (staging / "model.onnx").write_text("new")
    assert (out / "model.onnx").read_text() == "old"
    assert listing(tmp_path) == ["out", "out/model.onnx", "out/plan.json"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="OUT cannot be written"), staged(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), OSError(errno.EIO, "input/output error")])
@pytest.mark.parametrize("number", [1, 2])
def test_an_earlier_out_survives_whatever_happens_between_the_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException, number: int
) -> None:
    """A signal may come in front of a rename or behind it."""
    out, rename, count = earlier(tmp_path / "out"), Path.rename, 0

    def stopping(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        found = rename(self, target)
        if count == number:
            raise stop
        return found

    monkeypatch.setattr(Path, "rename", stopping)
    with pytest.raises(type(stop)), staged(out, force=True) as staging:
        (staging / "model.onnx").write_text("new")
    assert listing(tmp_path)[:2] == ["out", "out/model.onnx"]
    assert (out / "model.onnx").read_text() == ("old" if number == 1 else "new")
    assert names_in(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_what_came_to_lie_at_out_meanwhile_is_left_and_so_is_what_was_made(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "out"

    def run() -> None:
        with staged(out, force=force) as staging:
            (staging / "model.onnx").write_text("new")
            out.mkdir()
            (out / "thesis.txt").write_text("the only copy")

    with pytest.raises(OutputError, match="something came to lie at OUT") as caught:
        run()
    assert (out / "thesis.txt").read_text() == "the only copy"
    kept = Path(caught.value.remedy.rpartition(" ")[2])
    assert (kept / "model.onnx").read_text() == "new"
    assert len(listing(tmp_path)) == 4


def test_what_a_killed_run_moved_aside_comes_back(tmp_path: Path) -> None:
    earlier(tmp_path / ".out.old-0123")
    with pytest.raises(OutputError, match="exists already"):
        check_out(tmp_path / "out", force=False)
    assert (tmp_path / "out" / "model.onnx").read_text() == "old"
    assert names_in(tmp_path) == ["out"]


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    earlier(tmp_path / "out")
    earlier(tmp_path / ".out.old-0123")
    (tmp_path / ".out.partial-0123").mkdir()
    (tmp_path / ".other.partial-0123").mkdir()
    check_out(tmp_path / "out", force=True)
    assert names_in(tmp_path) == [".other.partial-0123", "out"]


HOLDS = """
import sys, time
from pathlib import Path
from spq_graph.documents.staging import staged
with staged(Path(sys.argv[1])) as staging:
    print(staging, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not held there")
def test_what_another_run_writes_into_is_left_until_it_is_gone(tmp_path: Path) -> None:
    """Killed as nobody can catch: its folder is held as long as it lives, and removed by the next one then."""
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLDS, out], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        check_out(out, force=False)
        assert theirs.is_dir()
        other.kill()
        other.wait()
        assert theirs.is_dir()
        check_out(out, force=False)
        assert not theirs.exists()


def test_files_are_written_together_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "ranges.json", tmp_path / "ranges.safetensors"
    written({one: b"old", other: b"old arrays"})
    plain = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if "safetensors" in self.name:
            plain(self, content[:2])
            raise OSError(errno.ENOSPC, "no space left on device")
        return plain(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="the disk is full; nothing was left behind"):
        written({one: b"new", other: b"new arrays"})
    monkeypatch.undo()
    assert (one.read_bytes(), other.read_bytes()) == (b"old", b"old arrays")
    assert names_in(tmp_path) == ["ranges.json", "ranges.safetensors"]
    with pytest.raises(OutputError, match="this cannot be written: No such file"):
        written({tmp_path / "absent" / "plan.json": b""})


def test_a_file_behind_a_link_is_written_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to("there")
    written({tmp_path / "link": b"new"})
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_bytes() == b"new"
