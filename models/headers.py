"""What a file of weights says of itself at its beginning."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from spq_graph.documents.parsed import parse_json
from spq_graph.models.leftover import refuse_quantized_names
from spq_graph.terms.errors import SourceError

# As they are read; numpy has no bfloat16, which is the upper half of a float32.
_READ: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class Tensor(Protocol):
    """A tensor in a file, by what its header says."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the tensor, rows first."""
        ...

    @property
    def readable(self) -> bool:
        """Whether it holds floating-point numbers that `read` reads."""
        ...

    def read(self) -> NDArray[np.float32]:
        """Its numbers, float32 of its shape."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies in a safetensors file.

    Attributes:
        file: the safetensors file.
        type: as its header names it; empty where it is none that is read.
        shape: of the tensor.
        start: its first byte in the file.
    """

    file: Path
    type: str
    shape: tuple[int, ...]
    start: int

    @property
    def readable(self) -> bool:
        """Whether it holds floating-point numbers that `read` reads."""
        return bool(self.type)

    def read(self) -> NDArray[np.float32]:
        """Its numbers, float32 of its shape."""
        numbers = np.fromfile(self.file, _READ[self.type], math.prod(self.shape), offset=self.start)
        if self.type == "BF16":
            numbers = (numbers.astype("<u4") << 16).view("<f4")
        return np.asarray(numbers, np.float32).reshape(self.shape)


def stored_in(file: Path) -> dict[str, Stored]:
    """Every tensor of a file, by name; raises as `check_safetensors`."""
    header, start = _header(file)
    return {name: _stored(file, start, entry) for name, entry in header.items()}


def _stored(file: Path, start: int, entry: Mapping[str, Any]) -> Stored:
    """What a header says of a tensor; of no type that is read where it contradicts itself."""
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if kind in _READ:
            sound = all(isinstance(size, int) and size >= 0 for size in shape)
            if sound and begin >= 0 and end - begin == math.prod(shape) * _READ[kind].itemsize:
                return Stored(file, kind, tuple(shape), start + begin)
    return Stored(file, "", (), start)


def check_safetensors(file: Path) -> int:
    """How many tensors a file holds.

    Raises:
        SourceError: header and size do not agree, as an interrupted download or a full disk leaves them.
    """
    header, start = _header(file)
    refuse_quantized_names(header, str(file))
    end = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end > (size := file.stat().st_size):
        raise SourceError(
            f"truncated: its header promises {end} bytes, the file has {size}",
            where=str(file),
            remedy="Download or write the file again.",
        )
    return len(header)


def _header(file: Path) -> tuple[Mapping[str, Any], int]:
    """What stands at a file's beginning of each tensor, by name, and where that ends."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        try:
            header = parse_json(stream.read(min(length, size, 100_000_000)))
            header = {name: entry for name, entry in header.items() if name != "__metadata__"}
            max((entry["data_offsets"][1] for entry in header.values()), default=0)
        except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
            raise SourceError(
                "truncated or not a safetensors file: its header cannot be read",
                where=str(file),
                remedy="Download or write the file again.",
            ) from error
    return header, 8 + length
