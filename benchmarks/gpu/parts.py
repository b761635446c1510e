"""A folder as parts of one compressed archive, and back; the same files give the same bytes, whenever and wherever."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import tarfile
from pathlib import Path

PART = 20 << 20
WHOLE = 60 << 20
NAME = "kit.tar.xz"
MANIFEST = "kit.json"


def pack(folder: Path, out: Path, *, part: int = PART, preset: int = 9) -> list[Path]:
    """Write a folder's files to OUT as kit.tar.xz.00, .01, ... and kit.json, which holds their digests."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = tarfile.TarInfo(path.relative_to(folder).as_posix())
            info.size, info.mode = path.stat().st_size, 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") as file:
                archive.addfile(info, file)
    packed = lzma.compress(raw.getbuffer(), preset=preset)
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob(f"{NAME}.*"):
        old.unlink()
    written = []
    for number, start in enumerate(range(0, len(packed), part)):
        path = out / f"{NAME}.{number:02}"
        path.write_bytes(packed[start : start + part])
        written.append(path)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in written}
    (out / MANIFEST).write_text(json.dumps({"bytes": len(packed), "sha256": digests}, indent=1) + "\n", "utf-8")
    return written


def unpack(kit: Path, out: Path) -> None:
    """Write the files of a kit to OUT.

    Raises:
        ValueError: a part is absent or is not the one that was written.
    """
    parts = json.loads((kit / MANIFEST).read_text("utf-8"))["sha256"]
    data = b""
    for name, digest in sorted(parts.items()):
        piece = (kit / name).read_bytes() if (kit / name).is_file() else b""
        if hashlib.sha256(piece).hexdigest() != digest:
            raise ValueError(f"{kit / name} is absent or damaged: make the kit again with `make gpu-kit`")
        data += piece
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:xz") as archive:
        archive.extractall(out, filter="data")
