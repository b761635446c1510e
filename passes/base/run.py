"""Passes run in their order, each held to what it states."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import onnx_ir as ir

from spq_graph.terms.errors import CheckError

Pass: TypeAlias = ir.passes.InPlacePass


def run(model: ir.Model, passes: Iterable[Pass]) -> bool:
    """Run passes in their order, in place; returns whether any of them changed something.

    Raises:
        CheckError: a pass was given what it does not take, or left what it promises not to: an error in their order.
        SpqError: as the passes.
    """
    modified = False
    for step in passes:
        try:
            modified |= step(model).modified
        except (ir.passes.PassError, ir.passes.InvariantError) as error:
            reason = error.__cause__ or error
            raise CheckError(
                f"{type(step).__name__}: {reason}", where=model.graph.name or "", remedy="please report this"
            ) from error
    return modified
