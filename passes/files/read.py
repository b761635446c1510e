"""Reading and checking ONNX files, and what can be asked of one."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx_ir as ir

from spq_graph.passes.base.wellformed import check_nodes
from spq_graph.passes.files.mapped import folder_of, load_mapped
from spq_graph.terms.errors import GraphError, SourceError

_MOST = 1 << 40  # elements along an axis
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
    _check_texts(model, path)
    _check_data(model, path)
    _check_links(model, path)
    check_nodes(model, str(path))
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
                    # Not as_tensor(), which asks a tensor for its size, and one of no type has none.
                    yield node.name or node.op_type, attribute.value


def _check_texts(model: ir.Model, path: Path) -> None:
    """Check that names are text: a parser of ONNX hands on as bytes what is not UTF-8."""
    for name in _texts_of(model):
        if name is not None and not isinstance(name, str):
            raise SourceError(
                f"a name in the graph is not UTF-8: {name!r}",
                where=str(path),
                remedy="export the model again, or give it another name there",
            )


def _texts_of(model: ir.Model) -> Iterator[Any]:
    yield from (model.producer_name, model.producer_version, model.domain, model.graph.name)
    for props in (model.metadata_props, model.opset_imports):
        yield from (*props, *(value for value in props.values() if not isinstance(value, int)))
    for function in model.functions.values():
        yield from (function.name, function.domain, *function.opset_imports, *function.attributes)
        yield from (text for node in function.all_nodes() for text in _texts_at(node))
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            yield value.name
            yield from (size.value for size in value.shape or () if not isinstance(size, int))
        yield from (text for node in graph for text in _texts_at(node))


def _texts_at(node: ir.Node) -> Iterator[Any]:
    yield from (node.name, node.op_type, node.domain, node.overload)
    yield from (value.name for value in (*node.inputs, *node.outputs) if value is not None)
    yield from (*node.attributes, *node.metadata_props, *node.metadata_props.values())


def _check_data(model: ir.Model, path: Path) -> None:
    for name, tensor in _tensors_of(model):
        _check_form(name, tensor, path)
        if isinstance(tensor, ir.ExternalTensor):
            if str(tensor.location) == path.name:
                _check_size(name, tensor, tensor.length or 0, path)
            _check_external(name, tensor, path)
        elif isinstance(tensor, ir.TensorProtoTensor) and tensor.raw.HasField("raw_data"):
            _check_size(name, tensor, len(tensor.raw.raw_data), path)
        elif isinstance(tensor, ir.TensorProtoTensor):
            _check_fields(name, tensor, path)
        elif isinstance(tensor, ir.StringTensor) and len(tensor.string_data()) != tensor.size:
            raise _other_count(name, len(tensor.string_data()), "texts", tensor, path)


def _check_form(name: str, tensor: ir.TensorProtocol, path: Path) -> None:
    """An element type and a shape that there are, before anything is computed from them."""
    shape = tensor.shape.numpy()
    try:
        kind = tensor.dtype
    except ValueError:  # a number that stands for no type
        kind = ir.DataType.UNDEFINED
    what = f"has the shape {list(shape)[:8]}" if not all(0 <= size < _MOST for size in shape) else ""
    if kind is ir.DataType.UNDEFINED:
        what = "has no element type"
    elif kind is ir.DataType.STRING and isinstance(tensor, ir.ExternalTensor):
        what = "has texts in another file, which ONNX does not have"
    if what:
        raise SourceError(
            f"weight '{name}' {what}", where=str(path), remedy="the file is damaged; export the model again"
        )


def _check_fields(name: str, tensor: ir.TensorProtoTensor, path: Path) -> None:
    """Numbers that lie in fields of their own, not as bytes: few, but as many as the shape wants."""
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    stored = sum(len(getattr(tensor.raw, field)) for field in fields)
    try:
        # Complex numbers are two, those of fewer than eight bits lie several in one.
        whole = tensor.size <= 8 * stored and tensor.numpy().size == tensor.size
    except Exception:  # the reader raises whatever numpy does
        whole = False
    if not whole:
        raise _other_count(name, stored, "numbers", tensor, path)


def _other_count(name: str, found: int, what: str, tensor: ir.TensorProtocol, path: Path) -> SourceError:
    return SourceError(
        f"weight '{name}' holds {found} {what} where its shape wants {tensor.size}",
        where=str(path),
        remedy="the file is damaged; export the model again",
    )


def _check_size(name: str, tensor: ir.TensorProtocol, found: int, path: Path) -> None:
    if found != tensor.nbytes:
        raise SourceError(
            f"weight '{name}' holds {found} bytes where its shape wants {tensor.nbytes}",
            where=str(path),
            remedy="the file is damaged; export it again",
        )


def _check_external(name: str, tensor: ir.ExternalTensor, path: Path) -> None:
    if (tensor.offset or 0) < 0 or (tensor.length or 0) < 0 or "\0" in str(tensor.location):
        raise SourceError(
            f"the place of weight '{name}' in external data is not valid",
            where=str(path),
            remedy="the file is damaged; export the model again",
        )
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
    holders: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for holder in holders:
        if (wrong := _unlinked(holder)) is not None:
            raise broken(wrong)
        try:
            holder.sort()
        except ValueError as cause:
            raise broken("the graph has a cycle: a node reads what follows from it") from cause


def _unlinked(holder: ir.Graph | ir.Function) -> str | None:
    """What is read in a graph or a function, and comes from nowhere, in words."""
    inner = [graph for graph in holder.subgraphs() if graph is not holder]
    known = {value for graph in (holder, *inner) for value in graph.inputs}
    if isinstance(holder, ir.Graph):
        known |= set(holder.initializers.values())
    known |= {value for graph in inner for value in graph.initializers.values()}
    for node in holder.all_nodes():
        for value in node.inputs:
            if value is not None and value.producer() is None and value not in known:
                return f"node '{node.name or node.op_type}' reads '{value.name}', which nothing produces"
    for value in (value for graph in (holder, *inner) for value in graph.outputs):
        if value.producer() is None and value not in known:
            return f"nothing produces the output '{value.name}'"
    return None


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
