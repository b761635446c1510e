"""What carries the GPU run to a machine: trimmed, packed to the same bytes every time, and run without a device."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import drive
from benchmarks.gpu.parts import pack, unpack
from benchmarks.gpu.trim import MAGIC, trim
from spq_graph.runtime.proof.held import why_absent
from spq_graph.terms.targets import PROFILES

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.mark.skipif(why_absent(PROFILES["cuda"]) is None, reason="there is a GPU here")
def test_without_a_device_every_step_says_so(tmp_path: Path) -> None:
    pack(some_files(tmp_path / "in"), tmp_path / "kit", preset=0)
    script = str(ROOT / "benchmarks" / "gpu" / "run.sh")
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", script, str(tmp_path / "kit"), str(tmp_path / "results")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "results" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert [(one["step"], one["result"]) for one in found] == [(name, "no device") for name in drive.STEPS]


def test_a_step_that_fails_or_takes_too_long_is_told(tmp_path: Path) -> None:
    failed = drive.run("no such step", tmp_path / "absent", 60)
    assert failed["result"] in ("failed", "no device")
    late = drive.run("product", tmp_path, 0.01)
    assert (late["result"], late["limit"]) == ("timed out", 0.01)
