"""Where it begins that logits are not finite: in the source, or in what was made of it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from spq_graph.runtime.measures.evaluate import LogitsNotFiniteError
from spq_graph.terms.errors import ActivationError, NotFiniteError
from spq_graph.workbench.faults import WIDER, first_fault
from spq_graph.workbench.workbench import Workbench

_ALL = "pass --keep '*' --high-precision fp32"


def in_source(error: LogitsNotFiniteError, bench: Workbench) -> ActivationError:
    """What to raise where a model's own logits are not finite."""
    return bench.not_finite(error.ids, error.mask, "a text")


def once_quantized(
    error: LogitsNotFiniteError, bench: Workbench, model: ir.Model, file: Path, row: str = ""
) -> NotFiniteError:
    """What to raise where logits of what was made of a source are not finite, while the source's own are.

    Args:
        error: what was raised.
        bench: the source.
        model: what was made, which is edited for it.
        file: beside which its weights lie.
        row: which of several it is, in words.
    """
    fault = first_fault(model, file, error.ids, error.mask, memory=bench.memory)
    what = "once quantized, the logits are NaN or infinite, which the source's are not"
    origin = f"{bench.source.origin}, {row}" if row else bench.source.origin
    if fault is None:
        return NotFiniteError(what, where=origin, remedy=_ALL)
    halves = any(v.dtype is ir.DataType.FLOAT16 for node in bench.prepared.graph.graph for v in node.outputs)
    keep = f"pass --keep '{fault.site}' --high-precision fp32" if fault.site is not None else _ALL
    remedy = WIDER if fault.half and halves else keep
    return NotFiniteError(f"{what}: {fault.what}", where=f"{origin}, {fault.where}", remedy=remedy)
