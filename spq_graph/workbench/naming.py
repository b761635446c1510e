"""Where it begins that logits are not finite: in the source, or in what was made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir as ir

from spq_graph.documents.plan import Plan
from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.base.run import run
from spq_graph.passes.find.flow import in_half
from spq_graph.passes.observe import Observe
from spq_graph.passes.pieces.split import split
from spq_graph.runtime.measures.asked import Stream
from spq_graph.runtime.measures.calibrate import batches_without_padding
from spq_graph.runtime.measures.evaluate import score_text
from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.sessions.memory import give_back_memory
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.runtime.text.sequences import Sequences, beginnings, spread
from spq_graph.terms.errors import ActivationError, NotFiniteError
from spq_graph.terms.targets import PROFILES
from spq_graph.workbench.built import Built
from spq_graph.workbench.faults import WIDER, first_fault
from spq_graph.workbench.not_finite import not_finite, sized
from spq_graph.workbench.workbench import Workbench

TOKENS = 256  # that are enough to see whether a model says anything
_ALL = "pass --keep '*' --high-precision fp32"


def in_source(error: LogitsNotFiniteError, bench: Workbench) -> ActivationError:
    """What to raise where a model's own logits are not finite."""
    return bench.not_finite(error.ids, error.mask, "a text")


@contextmanager
def named_on(bench: Workbench, prompts: Sequence[Sequence[int]]) -> Iterator[None]:
    """Say where in its graph it begins that a model makes NaN or infinity of one of these prompts.

    What shows only behind what was generated is left to the error as it is.
    """
    try:
        yield
    except ActivationError as error:
        for prompt in prompts:
            ids = np.array([prompt], dtype=np.int64)
            mask = np.ones_like(ids)
            if (fault := first_fault(bench.prepared.graph, bench.model, ids, mask, memory=bench.memory)) is not None:
                raise not_finite("a prompt", bench.source.origin, fault) from error
        raise


def refuse_too_large_on(bench: Workbench, text: Sequences) -> None:
    """Refuse a source whose float16 activations are, on a text, larger than float16 holds; nothing to do for others.

    Raises:
        ActivationError: naming them, and the size that was seen.
    """
    graph = bench.prepared.adapted(PROFILES["cpu"])
    observe = Observe([], sized(graph, bench.found.sites))
    if not observe.sized:
        return
    run(graph, [observe])
    names = [name for size in observe.sizes for name in size.outputs]
    largest = dict.fromkeys(observe.sized, 0.0)
    runner = SegmentedRunner(split(graph, bench.model, bench.memory), outputs=names)
    rows = batches_without_padding(text, *runner.fixed_shape)
    filled = [runner.filled(ids, np.ones_like(ids)) for ids in rows]
    with bench.steps.step("float16", f"Holding {text.tokens} tokens against what float16 holds") as tick:
        for batch, results in zip(filled, runner.results(filled, tick), strict=True):
            found = dict(zip(names, results, strict=True))
            if not all(np.isfinite(array).all() for array in results):
                raise bench.not_finite(*batch, "the text")
            for size in observe.sizes:
                seen = max(float(np.abs(found[name]).max(initial=0.0)) for name in size.outputs)
                largest[size.value] = max(largest[size.value], seen)
    if (error := bench.too_large(largest)) is not None:
        raise error


def refuse_not_finite(
    bench: Workbench, plan: Plan, built: Built, sequences: Sequences | None, stream: Stream | None = None
) -> None:
    """Run the source and what was made of it on a little text where nothing else was measured on them.

    Args:
        bench: the source.
        plan: what was decided.
        built: what was made.
        sequences: what to run; None for a row of token 0.
        stream: what was made, where it is open on what it is measured on.

    Raises:
        ActivationError: logits of the source are not finite, or what it gives instead.
        NotFiniteError: those of what was made of it are not.
    """
    nothing = bench.probe_ids()
    text = Sequences(nothing, np.ones_like(nothing))
    if sequences is not None:  # a row in full where the graph insists on its length
        text = spread(beginnings(sequences, None, bench.decoder.fixed_shape[1] or TOKENS), TOKENS)
    if not text.predicted.any():
        return  # a graph that takes one token at a time
    if sequences is None:  # calibration, which is finite or refused, has run the source on what is given
        _refuse_source(bench, text)
    emulated = bench.emulates(plan)
    file = bench.build(plan, profile=bench.measured_as(plan)) if emulated else built
    try:
        if stream is None or emulated:
            give_back_memory()  # of what wrote and proved the file: a session takes as much again
            stream = bench.stream_for(plan, file)
        require_finite(stream, text, scored=bench.logits.output is not None)
    except LogitsNotFiniteError as error:
        _refuse_source(bench, text)
        raise once_quantized(error, bench, canonical(file.path), file.path) from error
    finally:
        if file is not built:
            file.discard()


def require_finite(stream: Stream, text: Sequences, *, scored: bool) -> None:
    """Run a graph on a text to see that it gives numbers.

    Args:
        stream: the graph.
        text: what to run.
        scored: whether it gives logits, which text is scored by; of others nothing can be judged but that.

    Raises:
        LogitsNotFiniteError: with what it does not give them on.
    """
    if scored:
        score_text(stream, [], text)
        return
    rows = batches_without_padding(text, *stream.fixed_shape)
    filled = [stream.filled(ids, np.ones_like(ids)) for ids in rows]
    given = stream.results(filled) if isinstance(stream, SegmentedRunner) else (stream.run(*batch) for batch in filled)
    for batch, results in zip(filled, given, strict=True):
        if not all(np.isfinite(array).all() for array in results):
            raise LogitsNotFiniteError(str(stream.path), None, *batch)


def _refuse_source(bench: Workbench, text: Sequences) -> None:
    """Refuse a source whose own logits are not finite, or what it gives instead.

    Raises:
        ActivationError: naming where it begins.
    """
    try:
        require_finite(bench.reference, text, scored=bench.logits.output is not None)
    except LogitsNotFiniteError as error:
        raise in_source(error, bench) from error


def once_quantized(
    error: LogitsNotFiniteError, bench: Workbench, model: ir.Model, file: Path, row: str = ""
) -> NotFiniteError:
    """What to raise where logits of what was made of a source are not finite, while the source's own are.

    Args:
        error: what was raised.
        bench: the source.
        model: what was made.
        file: beside which its weights lie.
        row: which of several it is, in words.
    """
    fault = first_fault(model, file, error.ids, error.mask, memory=bench.memory)
    what = "once quantized, the logits are NaN or infinite, which the source's are not"
    origin = f"{bench.source.origin}, {row}" if row else bench.source.origin
    if fault is None:
        return NotFiniteError(what, where=origin, remedy=_ALL)
    keep = f"pass --keep '{fault.site}' --high-precision fp32" if fault.site is not None else _ALL
    remedy = WIDER if fault.half and in_half(bench.prepared.graph.graph) else keep
    return NotFiniteError(f"{what}: {fault.what}", where=f"{origin}, {fault.where}", remedy=remedy)
