"""What a graph must be before a pass, and is after it, for `requires` and `ensures`."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from spq_graph.passes.base.values import is_standard


class CanonicalPass(ir.passes.InPlacePass):
    """A pass on a graph that has been through `Canonicalize`."""

    def requires(self, model: ir.Model) -> None:
        """Constants are initializers, which nobody can override, and nothing but our operator is a function."""
        if (text := not_canonical(model)) is not None:
            raise ir.passes.PreconditionError(f"the graph is not canonical: {text}")


def not_canonical(model: ir.Model, ours: str = "spq") -> str | None:
    """Why a graph is not in the form that passes expect, in words; None where it is."""
    strangers = [
        f"{function.domain}::{function.name}" for function in model.functions.values() if function.domain != ours
    ]
    if strangers:
        return f"function {strangers[0]} was not inlined"
    constants = [node.name or "" for node in model.graph if node.op_type == "Constant" and is_standard(node)]
    if constants:
        return f"Constant '{constants[0]}' is no initializer"
    overridable = [value.name or "" for value in model.graph.inputs if value.is_initializer()]
    return f"initializer '{overridable[0]}' is an input, too" if overridable else None


def repeated_name(model: ir.Model) -> str | None:
    """A name that no node has, or several; None where every node has one of its own, as plans need it."""
    name, count = next(iter(Counter(node.name for node in model.graph).most_common(1)), ("", 1))
    nameless = any(not node.name for node in model.graph)
    return "" if nameless else name if count > 1 else None
