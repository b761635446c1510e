"""A model's file, opened so that its weights fit a memory limit: in one session, or segment by segment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from spq_graph.passes.adapt.prepared import Prepared, prepared
from spq_graph.passes.files.save import save_model
from spq_graph.passes.pieces.split import split
from spq_graph.runtime.measures.asked import Stream
from spq_graph.runtime.sessions.executed import Executed
from spq_graph.runtime.sessions.memory import give_back_memory, installed
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.runtime.sessions.session import Runner, execute_once
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import UsageError
from spq_graph.terms.logits import Logits
from spq_graph.terms.segment import Segmented


def open_stream(model: Path | Prepared, memory: int | None = None, logits: Logits | None = None) -> Stream:
    """A model, to be run on one batch after the other.

    Args:
        model: the .onnx file, or its graph where that was read already.
        memory: bytes that the weights in a session may take; None for the default of `pieces.split`.
        logits: which output holds them; None to go by names and shapes.

    Raises:
        SpqError: as `prepared` and `Runner`.
    """
    source = _prepared(model)
    segments = _in_segments(source, memory)
    return SegmentedRunner(segments, logits=logits) if segments is not None else Runner(source.path, logits=logits)


def _prepared(model: Path | Prepared) -> Prepared:
    return model if isinstance(model, Prepared) else prepared(model)


def _in_segments(source: Prepared, memory: int | None) -> Segmented | None:
    """A model in segments; None where one session over its file will do.

    What fits as a whole runs from its file: what is measured is then what is delivered.
    """
    model = split(source.copy(), source.path, memory)
    return model if len(model.segments) > 1 or not source.runs else None


def open_whole(source: Prepared, size: int, work: Path, logits: Logits | None = None) -> Runner:
    """A model in one session after all, for what must run it token by token.

    Args:
        source: the model. Where ONNX Runtime does not run its file, what it runs of it is written first.
        size: bytes that its weights take in a session.
        work: folder for what is written.
        logits: which output holds them; None to go by names and shapes.

    Raises:
        UsageError: the machine has less memory than it takes.
    """
    has = installed()
    if size > has:
        raise UsageError(
            f"in one session this model takes {size / 1e9:.1f} GB, and the machine has {has / 1e9:.1f} GB",
            where=str(source.path),
            remedy="pass --calibration FILE: only sampling text from the model, generation and tasks need it whole",
        )
    path = source.path
    if not source.runs:
        path = work / "whole.onnx"
        save_model(source.copy(), path)
    return Runner(path, logits=logits)


def run_once(stream: Stream, ids: Ids, mask: Ids) -> None:
    """Run one batch, int64 [batch, length] both, whatever comes of it."""
    filled = stream.filled(ids, mask)
    if isinstance(stream, Runner):
        stream.run(*filled)
    else:
        list(stream.results([filled]))


def execute(stream: Stream, ids: Ids) -> Executed:
    """Run one short batch, int64 [batch, length], under the profiler and list the kernels that ran."""
    return execute_once(stream.path, ids) if isinstance(stream, Runner) else stream.execute_once(ids)


def execute_file(
    path: Path,
    ids: Ids,
    memory: int | None = None,
    logits: Logits | None = None,
    then: Callable[[Stream], None] | None = None,
) -> Executed:
    """As `execute`, of a file that is not open: what fits as a whole is opened once, under the profiler.

    Args:
        path: the .onnx file.
        ids: the batch.
        memory: bytes that the weights in a session may take; None for the default of `pieces.split`.
        logits: which output holds them; None to go by names and shapes.
        then: what the file, once it has run, is to serve for besides: a second session would take as much again.
    """
    give_back_memory()  # of what wrote the file: a session takes as much again
    model = _in_segments(prepared(path), memory)
    if model is None:
        return execute_once(path, ids, logits=logits, then=then)
    runner = SegmentedRunner(model, logits=logits)
    found = runner.execute_once(ids)
    if then is not None:
        then(runner)
    return found
