"""Reading and checking ONNX files, and what can be asked of one."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx_ir as ir

from spq_graph.passes.files.mapped import folder_of, load_mapped
from spq_graph.terms.errors import GraphError, SourceError

_INVALID = "the graph is invalid; export the model again"


def load_graph(path: Path) -> ir.Model:
    """Read an ONNX file; weights stay memory-mapped, the file is never written to.

    Raises:
        SourceError: not a readable ONNX file, or its external data is missing, cut short or outside its folder.
        GraphError: the graph is empty, cyclic, or refers to values that nothing produces.
    """
    if not path.is_file():
        raise SourceError("no such file", where=str(path), remedy="check the spelling and the working directory")
    try:
        if path.stat().st_size == 0:
            raise SourceError("the file is empty", where=str(path), remedy="export or copy the model again")
        model = load_mapped(path)
    except OSError as cause:
        raise SourceError(
            f"the file cannot be read: {cause.strerror or cause}",
            where=str(path),
            remedy="make it readable, or copy it to a disk that can be read",
        ) from cause
    except SourceError:
        raise
    except Exception as cause:  # every serialization raises a class of its own
        reason = _last_reason(cause)
        if twice := re.search(r"Output '(.*)' is redeclared", reason):
            raise GraphError(
                f"two nodes of the graph give '{twice[1]}', or a node and a constant", where=str(path), remedy=_INVALID
            ) from cause
        raise SourceError(
            f"this is not a valid ONNX file ({reason})",
            where=str(path),
            remedy="it may be cut short by a broken copy or download; export it again",
        ) from cause
    _check_data(model, path)
    _check_links(model, path)
    return model


def _last_reason(cause: BaseException) -> str:
    """The innermost of the errors that a reader chained: the outer ones only say where it was."""
    while cause.__cause__ is not None:
        cause = cause.__cause__
    first = str(cause).strip().splitlines()[:1]
    return ": ".join([type(cause).__name__, *first])


def _tensors_of(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every tensor that a model stores, with the name of what holds it: initializers and constants."""
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type is ir.AttributeType.TENSOR and not attribute.is_ref():
                    yield node.name or node.op_type, attribute.as_tensor()


def _check_data(model: ir.Model, path: Path) -> None:
    for name, tensor in _tensors_of(model):
        if isinstance(tensor, ir.ExternalTensor):
            if str(tensor.location) == path.name:
                _check_size(name, tensor, tensor.length or 0, path)
            _check_external(name, tensor, path)
        elif isinstance(tensor, ir.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
            _check_size(name, tensor, len(tensor.raw.raw_data), path)


def _check_size(name: str, tensor: ir.TensorProtocol, found: int, path: Path) -> None:
    if found != tensor.nbytes:
        raise SourceError(
            f"weight '{name}' holds {found} bytes where its shape wants {tensor.nbytes}",
            where=str(path),
            remedy="the file is damaged; export it again",
        )


def _check_external(name: str, tensor: ir.ExternalTensor, path: Path) -> None:
    # Windows reads a name in its own way, and a file that is safe here must be so there.
    readings = (PurePosixPath(tensor.location), PureWindowsPath(tensor.location))
    if any(reading.anchor or ".." in reading.parts for reading in readings):
        raise SourceError(
            f"weight '{name}' lies outside of the model's folder ({tensor.location})",
            where=str(path),
            remedy="external data must lie beside the model; save it again with relative paths",
        )
    data = folder_of(path, tensor.location) / tensor.location
    if not data.is_file():
        raise SourceError(
            f"external data '{tensor.location}' is missing (weight '{name}')",
            where=str(path),
            remedy="copy it beside the .onnx file",
        )
    # A link may lead to where the model itself does, as all of a Hub cache's do.
    if not any(data.resolve().is_relative_to(home) for home in (path.parent.resolve(), path.resolve().parent)):
        raise SourceError(
            f"external data '{tensor.location}' is a link to outside of the model's folder (weight '{name}')",
            where=str(path),
            remedy="copy the file that it leads to beside the .onnx file",
        )
    if (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes) > data.stat().st_size:
        raise SourceError(
            f"external data '{tensor.location}' is cut short (weight '{name}' reaches beyond its end)",
            where=str(path),
            remedy="copy it again",
        )


def _check_links(model: ir.Model, path: Path) -> None:
    """Check that there is a graph, that every value comes from somewhere, and that none comes from itself."""

    def broken(what: str) -> GraphError:
        return GraphError(what, where=str(path), remedy=_INVALID)

    if not len(model.graph) or not model.graph.outputs:
        raise broken("the graph is empty")
    for name, count in Counter(value.name for value in model.graph.inputs).items():
        if count > 1:
            raise broken(f"{count} inputs have the name '{name}'")
    known = {v for graph in model.graphs() for v in (*graph.inputs, *graph.initializers.values())}
    for node in model.graph.all_nodes():
        for value in node.inputs:
            if value is not None and value.producer() is None and value not in known:
                raise broken(f"node '{node.name or node.op_type}' reads '{value.name}', which nothing produces")
    for value in model.graph.outputs:
        if value.producer() is None and value not in known:
            raise broken(f"nothing produces the output '{value.name}'")
    try:
        model.graph.sort()
    except ValueError as cause:
        raise broken("the graph has a cycle: a node reads what follows from it") from cause


def ends_of(path: Path) -> tuple[dict[str, list[int | str | None]], list[str]]:
    """The graph's inputs by name, with their shapes (a number, a name, or None for each dimension), and its outputs."""
    graph = load_mapped(path).graph
    shapes = {v.name or "": [d if isinstance(d, int) else d.value for d in v.shape or ()] for v in graph.inputs}
    return shapes, [value.name or "" for value in graph.outputs]


def files_of(path: Path) -> list[Path]:
    """The ONNX file and the external data that it refers to, in the order of their names."""
    tensors = (tensor for _, tensor in _tensors_of(load_mapped(path)))
    locations = {str(t.location) for t in tensors if isinstance(t, ir.ExternalTensor)} - {path.name}
    return [path, *(folder_of(path, location) / location for location in sorted(locations))]


def size_of(path: Path) -> int:
    """Bytes of the ONNX file and its external data."""
    return sum(file.stat().st_size for file in files_of(path))


def digest_of(path: Path) -> str:
    """sha256 over the ONNX file and its external data."""
    digest = hashlib.sha256()
    for file in files_of(path):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
