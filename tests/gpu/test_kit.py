"""What carries the GPU run to a machine: trimmed, and packed to the same bytes every time."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from benchmarks.gpu.parts import pack, unpack
from benchmarks.gpu.trim import MAGIC, trim


def image(kind: int, architecture: int, body: bytes) -> bytes:
    return struct.pack("<HHIQ12xI32x", kind, 0, 64, len(body), architecture) + body


def container(*images: bytes) -> bytes:
    body = b"".join(images)
    return MAGIC + struct.pack("<HHQ", 1, 16, len(body)) + body


def test_only_wanted_machine_code_of_one_architecture_stays() -> None:
    parts = [image(2, 80, b"a" * 40), image(2, 90, b"b" * 48), image(1, 90, b"c" * 8), image(2, 90, b"moe" * 8)]
    data = bytearray(b"head" + MAGIC + b"no container" + container(*parts) + b"between" + container(image(2, 90, b"d")))
    before = bytes(data)
    assert trim(data, 90, lambda code: b"moe" not in code) == (49, 40 + 8 + 24)
    assert len(data) == len(before)
    for gone in (b"a" * 40, b"c" * 8, b"moe" * 8):
        before = before.replace(gone, bytes(len(gone)))
    assert bytes(data) == before


def some_files(folder: Path) -> Path:
    (folder / "site").mkdir(parents=True)
    (folder / "site" / "one.py").write_text("one = 1\n", encoding="utf-8")
    (folder / "weights").write_bytes(os.urandom(1) * 5 + bytes(range(256)) * 40)
    return folder


def test_the_same_files_give_the_same_bytes_in_parts_and_come_back(tmp_path: Path) -> None:
    folder = some_files(tmp_path / "in")
    first = [path.read_bytes() for path in pack(folder, tmp_path / "kit", part=100, preset=0)]
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    assert [path.read_bytes() for path in pack(folder, tmp_path / "again", part=100, preset=0)] == first
    assert len(first) > 1
    assert max(map(len, first)) <= 100
    unpack(tmp_path / "kit", tmp_path / "out")
    assert (tmp_path / "out" / "weights").read_bytes() == (folder / "weights").read_bytes()
    (tmp_path / "kit" / "kit.tar.xz.00").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"kit\.tar\.xz\.00 is absent or damaged"):
        unpack(tmp_path / "kit", tmp_path / "more")
