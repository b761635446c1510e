"""Refusals of OUT folders and of single files to write, each made and put right as it says."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from spq_graph.documents import artifact
from spq_graph.documents.staging import staged, written
from tests.support.following import Told
from tests.support.outs import earlier

follows = pytest.mark.follows


# ------------------------------------------------------------------------------------------------- OUT


@follows("spq_graph/documents/artifact.py:check_out", "OUT would replace an input")
def test_out_over_an_input(refusal: Told, tmp_path: Path) -> None:
    model = tmp_path / "model" / "model.onnx"
    model.parent.mkdir()
    model.touch()
    with refusal:
        artifact.check_out(model.parent, force=True, inputs=(model,))
    artifact.check_out(tmp_path / "another", force=True, inputs=(model,))


@follows("spq_graph/documents/artifact.py:check_out", "OUT exists already")
def test_out_exists(refusal: Told, tmp_path: Path) -> None:
    out = earlier(tmp_path / "out")
    with refusal:
        artifact.check_out(out, force=False)
    artifact.check_out(tmp_path / "another", force=False)
    artifact.check_out(out, force=True)


@follows("spq_graph/documents/artifact.py:check_out", "is not an artifact")
def test_out_is_foreign(refusal: Told, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").touch()
    with refusal:
        artifact.check_out(out, force=True)
    artifact.check_out(tmp_path / "another", force=True)
    shutil.rmtree(out)
    artifact.check_out(out, force=True)


@follows("spq_graph/documents/artifact.py:_check_parent")
def test_out_below_a_file(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refusal:
        artifact.check_out(tmp_path / "file" / "out", force=False)
    artifact.check_out(tmp_path / "out", force=False)


@follows("spq_graph/documents/staging.py:staged")
def test_staging_below_a_file(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with refusal, staged(tmp_path / "file" / "out"):
        pytest.fail("there is nowhere to write")
    with staged(tmp_path / "out") as staging:
        (staging / artifact.PLAN).touch()
    assert (tmp_path / "out" / artifact.PLAN).is_file()


@follows("spq_graph/documents/staging.py:_move_in")
def test_out_comes_while_it_is_made(refusal: Told, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with refusal, staged(out) as staging:
        (staging / artifact.PLAN).write_text("whole", encoding="utf-8")
        out.mkdir()
    kept = Path(refusal.error.remedy.removeprefix("what was made is complete, and lies in "))
    assert (kept / artifact.PLAN).read_text(encoding="utf-8") == "whole"


@follows("spq_graph/documents/artifact.py:companions_in")
def test_linked_companion(refusal: Told, tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "config.json"
    folder.mkdir()
    file.write_text("{}", encoding="utf-8")
    (folder / "config.json").symlink_to(file)
    with refusal:
        artifact.companions_in(folder)
    (folder / "config.json").unlink()
    assert artifact.companions_in(folder) == []
    shutil.copy(file, folder / "config.json")
    assert artifact.companions_in(folder) == [folder / "config.json"]


# ------------------------------------------------------------------------------------------------- files


@follows("spq_graph/documents/artifact.py:check_file", "this would replace an input or a folder")
def test_file_over_an_input(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with refusal:
        artifact.check_file(tmp_path / "model.onnx", (tmp_path / "model.onnx",))
    artifact.check_file(tmp_path / "another.json", (tmp_path / "model.onnx",))


@follows("spq_graph/documents/artifact.py:check_file", "this file exists and is not ours", nth=0)
def test_file_of_somebody_else(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "notes.json").write_text("{}", encoding="utf-8")
    with refusal:
        artifact.check_file(tmp_path / "notes.json")
    artifact.check_file(tmp_path / "another.json")


@follows("spq_graph/documents/artifact.py:check_file", "this file exists and is not ours", nth=1)
def test_arrays_of_somebody_else(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with refusal:
        artifact.check_file(tmp_path / "model.json", arrays=True)
    artifact.check_file(tmp_path / "another.json", arrays=True)


@follows("spq_graph/documents/artifact.py:check_file", "there is no such folder")
def test_file_in_no_folder(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        artifact.check_file(tmp_path / "absent" / "plan.json")
    artifact.check_file(tmp_path / "plan.json")
    (tmp_path / "absent").mkdir()
    artifact.check_file(tmp_path / "absent" / "plan.json")


@follows("spq_graph/documents/staging.py:_told", "the disk is full")
def test_full_disk(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One disk has no room, and another has."""
    full, write = tmp_path / "full", Path.write_bytes
    full.mkdir()

    def write_bytes(path: Path, content: bytes) -> int:
        if full in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_bytes)
        with refusal:
            written({full / "plan.json": b"{}"})
        assert not list(full.iterdir())
        written({tmp_path / "plan.json": b"{}"})
    written({full / "plan.json": b"{}"})


@follows("spq_graph/documents/staging.py:_told", "this cannot be written")
def test_no_such_folder(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        written({tmp_path / "absent" / "plan.json": b"{}"})
    written({tmp_path / "plan.json": b"{}"})
