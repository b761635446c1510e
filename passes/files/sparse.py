"""Sparse initializers, which onnx_ir does not read, become ordinary ones before it does."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from spq_graph.terms.errors import SourceError

# Bytes of a whole tensor: what a message of protobuf holds, and what a few stored numbers may become.
_MOST, _PLAUSIBLE, _TIMES = 2 << 30, 64 << 20, 1 << 16


def make_dense(model: onnx.ModelProto) -> None:
    """Store every sparse initializer of a model as an ordinary one of the same name, as runtimes do when they load it.

    Raises:
        SourceError: one is no valid sparse tensor, or its numbers lie in another file.
    """
    for graph in _graphs(model.graph):
        for tensor in graph.sparse_initializer:
            graph.initializer.append(_dense(tensor))
        graph.ClearField("sparse_initializer")


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(inner)


def _dense(tensor: onnx.SparseTensorProto) -> onnx.TensorProto:
    """ONNX IR, SparseTensorProto: values [NNZ] at indices int64 [NNZ], or [NNZ, rank], of a tensor of shape `dims`."""
    name, shape = tensor.values.name, tuple(tensor.dims)
    if onnx.TensorProto.EXTERNAL in (tensor.values.data_location, tensor.indices.data_location):
        raise SourceError(
            f"the sparse weight '{name}' lies in another file, which is not supported",
            remedy="store it as an ordinary initializer",
        )
    try:
        values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
        whole = math.prod(shape) * values.itemsize
        if whole >= _MOST or whole > max(_PLAUSIBLE, _TIMES * values.nbytes):
            raise ValueError(f"{values.size} numbers of a tensor of {list(shape)}, which takes {whole} bytes")
        dense = np.zeros(shape, dtype=values.dtype)
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), shape)
        if values.shape != indices.shape or indices.min(initial=0) < 0:
            raise ValueError(f"{values.shape} values at {indices.shape} places")
        dense.reshape(-1)[indices] = values
    except (ValueError, IndexError, TypeError, MemoryError) as cause:
        raise SourceError(
            f"the sparse weight '{name}' is not valid ({cause})", remedy="the file is damaged; export it again"
        ) from cause
    return numpy_helper.from_array(dense, name)
