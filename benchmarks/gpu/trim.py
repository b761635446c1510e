"""Blank the CUDA images that one test does not need, so that a shared library compresses well; for tests, not releases.

A fat binary container (magic 0xBA55ED50) holds images, each with a header that names its architecture. What is blanked
becomes zeros in place: size and layout stay, and the library loads as before, on the kept architecture only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAGIC = b"\x50\xed\x55\xba"
MACHINE_CODE = 2
Keep = Callable[[bytes], bool]
"""Takes an image as it lies in the file, and says whether it is needed."""


@dataclass(frozen=True, slots=True)
class Image:
    """Where an image's bytes lie, and what it is for."""

    start: int
    end: int
    kind: int
    architecture: int


def images(data: bytes | bytearray) -> Iterator[Image]:
    """Every image of every container in a file; what merely looks like a container is passed over."""
    start = data.find(MAGIC)
    while start >= 0:
        version, header, size = struct.unpack_from("<HHQ", data, start + 4) if start + 16 <= len(data) else (0, 0, 0)
        end = start + header + size
        if version != 1 or header != 16 or end > len(data):
            start = data.find(MAGIC, start + 4)
            continue
        at = start + header
        while at + 32 <= end:
            kind, _, before, length = struct.unpack_from("<HHIQ", data, at)
            (architecture,) = struct.unpack_from("<I", data, at + 28)
            if not 32 <= before <= 4096 or at + before + length > end:
                break
            yield Image(at + before, at + before + length, kind, architecture)
            at += before + length
        start = data.find(MAGIC, end)


def trim(data: bytearray, architecture: int, keep: Keep = lambda image: True) -> tuple[int, int]:
    """Blank in place what is not machine code of an architecture, or is not to be kept; bytes kept and blanked."""
    kept = blanked = 0
    for image in list(images(data)):
        needed = image.kind == MACHINE_CODE and image.architecture == architecture
        if needed and keep(bytes(data[image.start : image.end])):
            kept += image.end - image.start
        else:
            data[image.start : image.end] = bytes(image.end - image.start)
            blanked += image.end - image.start
    return kept, blanked
