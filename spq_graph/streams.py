"""A model's file, opened so that its weights fit a memory limit: in one session, or segment by segment."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from spq_graph.errors import UsageError
from spq_graph.passes.bfloat16 import WidenBfloat16
from spq_graph.passes.graph import Canonicalize, load_graph
from spq_graph.passes.segments import split
from spq_graph.runtime.evaluate import Stream
from spq_graph.runtime.executed import Executed
from spq_graph.runtime.segmented import SegmentedRunner
from spq_graph.runtime.sequences import Ids
from spq_graph.runtime.session import Runner, execute_once
from spq_graph.segment import Segmented


def open_stream(path: Path, memory: int | None = None) -> Stream:
    """A model, to be run on one batch after the other.

    Args:
        path: the .onnx file.
        memory: bytes that the weights in a session may take; None for the default of `segments.split`.

    Raises:
        SpqError: as `load_graph` and `Runner`.
    """
    model = _in_segments(path, memory)
    return SegmentedRunner(model) if model is not None else Runner(path)


def _in_segments(path: Path, memory: int | None) -> Segmented | None:
    """A model in segments; None where one session over its file will do.

    What fits as a whole runs from its file: what is measured is then what is delivered.
    """
    graph, edited = _runnable(path)
    model = split(graph, path, memory)
    return model if len(model.segments) > 1 or edited else None


def _runnable(path: Path) -> tuple[ir.Model, bool]:
    """A graph as ONNX Runtime's CPU provider runs it, and whether it had to be edited for that."""
    graph = load_graph(path)
    names = [node.name for node in graph.graph if node.name]
    repeated = len(set(names)) < len(names)  # ONNX Runtime loads no file with two nodes of one name
    Canonicalize()(graph)
    return graph, WidenBfloat16()(graph).modified or repeated


def open_whole(model: SegmentedRunner) -> Runner:
    """The model in one session after all, for what must run it token by token.

    Raises:
        UsageError: the machine has less memory than it takes.
    """
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if _runnable(model.path)[1]:
        raise UsageError(
            "ONNX Runtime does not run this model as it is: it has bfloat16 weights, or two nodes of one name",
            where=str(model.path),
            remedy="pass --calibration FILE; what is made of it by `quantize` runs",
        )
    if model.bytes > has:
        raise UsageError(
            f"in one session this model takes {model.bytes / 1e9:.1f} GB, and the machine has {has / 1e9:.1f} GB",
            where=str(model.path),
            remedy="pass --calibration FILE: only sampling text from the model, generation and tasks need it whole",
        )
    return Runner(model.path)


def execute(stream: Stream, ids: Ids) -> Executed:
    """Run one short batch, int64 [batch, length], under the profiler and list the kernels that ran."""
    return execute_once(stream.path, ids) if isinstance(stream, Runner) else stream.execute_once(ids)


def execute_file(path: Path, ids: Ids, memory: int | None = None) -> Executed:
    """As `execute`, of a file that is not open: what fits as a whole is opened once, under the profiler."""
    model = _in_segments(path, memory)
    return SegmentedRunner(model).execute_once(ids) if model is not None else execute_once(path, ids)
