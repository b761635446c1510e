"""Read an ONNX file without reading its weights, also where they lie in the file itself.

A protobuf parser copies whatever it parses. Here the file is walked field by field, large weights are left where they
are, and what is parsed says of each in which bytes of the file it lies: the form that ONNX has for external data.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import onnx
import onnx_ir as ir

from spq_graph.passes.files.sparse import make_dense

# Field numbers of onnx.proto, which never change; a wire type of 2 is bytes with their length in front.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_LARGE = 1 << 16


def load_mapped(path: Path) -> ir.Model:
    """Read an ONNX file; weights stay in the file, or in the files beside it, until they are asked for.

    Raises:
        Exception: whatever the reader of onnx_ir raises for a file that it cannot read.
    """
    proto = _proto(path)
    make_dense(proto)
    model: ir.Model = ir.from_proto(proto)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = Mapped.of(value.const_value, path)
    return model


def folder_of(path: Path, location: str | os.PathLike[str]) -> Path:
    """Where external data of a file lies.

    Beside the file as it was named, also where that is a link: a Hub cache has links to both, beside each other, and
    keeps what they lead to under other names. Else beside what the link leads to.
    """
    return path.parent if (path.parent / location).is_file() else path.resolve().parent


def _proto(path: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    if path.stat().st_size >= _LARGE:
        # What fails is the walk, or the parser, whose error has no public name; the plain reader says what it is.
        with suppress(Exception), path.open("rb") as stream:
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                proto.ParseFromString(_without_weights(data, path.name))
            return proto
    return onnx.load(path, load_external_data=False)


class Mapped(ir.ExternalTensor):
    """A tensor in a file that is mapped anew by whoever reads it, and let go of with what was read.

    It keeps nothing, so that copies of a graph share it and any number of threads read it at once; what the system
    counts as held is what somebody looks at.
    """

    @classmethod
    def of(cls, tensor: ir.ExternalTensor, path: Path) -> Mapped:
        """The same place, for the model in a file."""
        return cls(*_place_of(tensor), **_named(tensor) | {"base_dir": folder_of(path, tensor.location)})

    def tofile(self, file: Any) -> None:
        """Copy the bytes into another file."""
        self._own().tofile(file)

    def _own(self) -> ir.ExternalTensor:
        # By its whole path, so that what may be read is decided once, by whoever loads the graph: onnx_ir knows one
        # folder only, and takes a hard link for an attack.
        return ir.ExternalTensor(self.path, *_place_of(self)[1:], **_named(self) | {"base_dir": ""})

    def numpy(self) -> npt.NDArray[Any]:
        """A view of the file."""
        return self._own().numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self._own().__array__(dtype)

    def tobytes(self) -> bytes:
        """A copy of the bytes."""
        return self._own().tobytes()

    def release(self) -> None:
        """Nothing: there is nothing to let go of."""


def _place_of(tensor: ir.ExternalTensor) -> tuple[Any, int | None, int | None, ir.DataType]:
    return tensor.location, tensor.offset, tensor.length, tensor.dtype


def _named(tensor: ir.ExternalTensor) -> dict[str, Any]:
    return {
        "shape": tensor.shape,
        "name": tensor.name,
        "doc_string": tensor.doc_string,
        "metadata_props": dict(tensor.metadata_props),
        "base_dir": tensor.base_dir,
    }


class _Field(NamedTuple):
    """One field of a message: where it starts, its number, and where its content starts and ends."""

    start: int
    number: int
    wire: int
    content: int
    end: int


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    place = start
    while place < end:
        key, content = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == _BYTES:
            length, content = _varint(data, content)
            after = content + length
        elif wire == _VARINT:
            _, after = _varint(data, content)
        elif wire in (_FIXED32, _FIXED64):
            after = content + (4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"wire type {wire}")
        if after > end:
            raise ValueError("a field reaches beyond its message")
        yield _Field(place, number, wire, content, after)
        place = after


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _message(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _without_weights(data: mmap.mmap, name: str) -> bytes:
    """The model, with references to bytes of the file in place of its large weights."""
    parts = [
        _message(field.number, _graph(data, field, name))
        if field.number == _MODEL_GRAPH and field.wire == _BYTES
        else data[field.start : field.end]
        for field in _fields(data, 0, len(data))
    ]
    return b"".join(parts)


def _graph(data: mmap.mmap, graph: _Field, name: str) -> bytes:
    parts = [
        _message(field.number, _tensor(data, field, name))
        if field.number == _GRAPH_INITIALIZER and field.wire == _BYTES and field.end - field.content > _LARGE
        else data[field.start : field.end]
        for field in _fields(data, graph.content, graph.end)
    ]
    return b"".join(parts)


def _tensor(data: mmap.mmap, tensor: _Field, name: str) -> bytes:
    parts: list[bytes] = []
    raw: _Field | None = None
    for field in _fields(data, tensor.content, tensor.end):
        if field.number == _TENSOR_RAW_DATA:
            raw = field
        else:
            parts.append(data[field.start : field.end])
    if raw is None:
        return b"".join(parts)
    place = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", name), ("offset", str(raw.content)), ("length", str(raw.end - raw.content))):
        place.external_data.add(key=key, value=value)
    return b"".join([*parts, place.SerializeToString()])
