"""Calls of our operators that mean nothing, told before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from spq_graph.passes.base.fp8_calls import wrong_fp8_calls
from spq_graph.passes.base.int8_calls import wrong_int8_calls
from spq_graph.terms.errors import GraphError


def refuse_wrong_calls(model: ir.Model, where: str) -> None:
    """Refuse a model with a call that an operator's library would refuse, or that means nothing.

    Args:
        model: the graph.
        where: what it is called.

    Raises:
        GraphError: naming the node and what is wrong.
    """
    for operator, wrong in (("Fp8MatMul", wrong_fp8_calls(model)), ("Int8MatMul", wrong_int8_calls(model))):
        for text in wrong:
            raise GraphError(
                f"spq::{operator}: {text}",
                where=where,
                remedy="make the file again with `spq-graph apply` from the model and its plan",
            )


def wrong_calls(model: ir.Model) -> Iterator[str]:
    """What is wrong with calls of our operators, in words."""
    yield from wrong_fp8_calls(model)
    yield from wrong_int8_calls(model)
