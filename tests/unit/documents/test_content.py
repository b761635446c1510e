"""Files that are none: pipes with and without names, and devices without an end."""

from __future__ import annotations

import contextlib
import gzip
import os
import socket
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from spq_graph.documents import content
from spq_graph.documents.artifact import check_file
from spq_graph.documents.content import content_of
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.ranges_file import read_arrays
from spq_graph.documents.recipe import load_recipe
from spq_graph.models.onnx_folder import onnx_of
from spq_graph.models.source import Source, resolve
from spq_graph.runtime.measures.tasks import load_task
from spq_graph.runtime.text.documents import read_documents
from spq_graph.runtime.text.reading import load_sequences
from spq_graph.terms.errors import SpqError
from spq_graph.workbench.data import check_measured
from tests.support.samples import sample_plan
from tests.support.samples_ranges import sample_ranges

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pipes and devices as Linux has them")
READERS: list[Callable[[Path], object]] = [
    Plan.load,
    Ranges.load,
    load_recipe,
    load_task,
    lambda path: read_documents(path, str),
]


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_with_a_name_is_not_waited_for(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(SpqError, match="reading may wait for ever"):
        read(tmp_path / "pipe.json")


@pytest.mark.parametrize("read", [reader for reader in READERS if reader != Ranges.load])  # these end in .json
def test_what_does_not_end_is_not_read_to_its_end(
    read: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "_MOST", 1 << 16)
    with pytest.raises(SpqError, match="does not end"):
        read(Path("/dev/zero"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_what_a_shell_gives_in_place_of_a_file_is_read_once(pack: Callable[[bytes], bytes]) -> None:
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as stream:
            stream.write(pack(b"one text " * 30_000))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert read_documents(Path(f"/dev/fd/{reading}"), str) == "one text " * 30_000
    finally:
        writer.join()
        os.close(reading)


SPECIAL: list[Callable[[Path], object]] = [
    lambda path: resolve(str(path)),
    onnx_of,
    lambda path: check_measured(Source("onnx", path, ""), path),
    lambda path: load_sequences(path, None, window=8, bos=False, vocab_size=None),
    lambda path: read_arrays(path, {}),
]


@pytest.mark.parametrize("name", ["a.npz", "a.onnx", "a.gguf", "a.safetensors"])
@pytest.mark.parametrize("kind", ["a pipe", "a socket"])
def test_what_is_no_file_is_called_what_it_is(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / name
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(tmp_path):  # its path must be short
            made.bind(name)
    for read in SPECIAL if name == "a.npz" else SPECIAL[:3]:
        with pytest.raises(SpqError, match=f"this is {kind}, not a file"):
            read(path)


def test_a_device_is_no_file() -> None:
    for read in SPECIAL[:3]:
        with pytest.raises(SpqError, match="this is a device, not a file"):
            read(Path("/dev/zero"))


def test_arrays_of_ranges_in_a_pipe(tmp_path: Path) -> None:
    sample_ranges(sample_plan()).save(tmp_path / "ranges.json")
    (tmp_path / "ranges.safetensors").unlink()
    os.mkfifo(tmp_path / "ranges.safetensors")
    with pytest.raises(SpqError, match="this is a pipe, not a file") as caught:
        Ranges.load(tmp_path / "ranges.json")
    assert caught.value.where == str(tmp_path / "ranges.safetensors")


def test_what_is_written_replaces_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ranges.json")
    with pytest.raises(SpqError, match="not ours"):
        check_file(tmp_path / "ranges.json")
    assert stat.S_ISFIFO((tmp_path / "ranges.json").stat().st_mode)


def test_a_file_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_MOST", 10)
    (tmp_path / "a").write_bytes(b"x" * 99)
    assert content_of(tmp_path / "a") == b"x" * 99
