"""Writing a model with its weights beside it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx_ir as ir

from spq_graph.passes.base.marks import FP8
from spq_graph.terms.errors import SpqError

DATA_SUFFIX = ".data"
IN_FLIGHT_BYTES = 128 << 20


def save_model(model: ir.Model, path: Path) -> int:
    """Write a model with its weights beside it, few tensors in memory at a time, and return the bytes of both files.

    Raises:
        CheckError: what was made of a weight does not stand for it.
        OSError: the disk is full, or the folder cannot be written.
    """
    data = path.name + DATA_SUFFIX
    _panels_first(model.graph)
    try:
        ir.save(
            model,
            path,
            external_data=data,
            size_threshold_bytes=1024,
            max_workers=os.cpu_count(),
            max_in_flight_bytes=IN_FLIGHT_BYTES,
        )
    except Exception as error:  # the writer wraps whatever a weight raised in errors of its own
        first = _first_of(error)
        if isinstance(first, OSError) and first.errno is None:  # numpy says how much it wrote, and not why no more
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if first is error:
            raise
        raise first from None
    beside = path.with_name(data)
    return path.stat().st_size + (beside.stat().st_size if beside.exists() else 0)


def _panels_first(graph: ir.Graph) -> None:
    """Let FP8 weights start at multiples of 64 bytes, a cache line, in external data.

    Tensors are packed in this order without gaps, and panels are the only ones whose sizes are all multiples of 64.
    """
    values = list(graph.initializers.values())
    if any(value.dtype is FP8 for value in values):
        graph.initializers.clear()
        for value in sorted(values, key=lambda value: value.dtype is not FP8):
            graph.initializers.add(value)


def _first_of(error: BaseException) -> BaseException:
    """What began a chain of errors, where that is one of ours or the system's; otherwise the error itself."""
    first = error
    while (before := first.__cause__ or first.__context__) is not None:
        first = before
    return first if isinstance(first, SpqError | OSError) else error
