"""Calls of our operators that mean nothing, told before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx_ir as ir

from spq_graph.passes.base.fp8_calls import wrong_fp8_calls
from spq_graph.passes.base.int8_calls import wrong_gather_calls, wrong_int8_calls
from spq_graph.terms.errors import GraphError

_WRONG: Mapping[str, Callable[[ir.Model], Iterator[str]]] = {
    "Fp8MatMul": wrong_fp8_calls,
    "Int8MatMul": wrong_int8_calls,
    "Int8Gather": wrong_gather_calls,
}


def refuse_wrong_calls(model: ir.Model, where: str) -> None:
    """Refuse a model with a call that an operator's library would refuse, or that means nothing.

    Args:
        model: the graph.
        where: what it is called.

    Raises:
        GraphError: naming the node and what is wrong.
    """
    for operator, wrong in _WRONG.items():
        for text in wrong(model):
            raise GraphError(
                f"spq::{operator}: {text}",
                where=where,
                remedy="make the file again with `spq-graph apply` from the model and its plan",
            )


def wrong_calls(model: ir.Model) -> Iterator[str]:
    """What is wrong with calls of our operators, in words."""
    for wrong in _WRONG.values():
        yield from wrong(model)
