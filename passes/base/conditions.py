"""What a graph must be before a pass, and is after it, for `requires` and `ensures`."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from spq_graph.passes.base.marks import DOMAIN
from spq_graph.passes.base.values import is_standard


class CanonicalPass(ir.passes.InPlacePass):
    """A pass on a graph that has been through `Canonicalize`."""

    def requires(self, model: ir.Model) -> None:
        """Constants are initializers, which nobody can override, and nothing but our operators is a function."""
        if (text := not_canonical(model)) is not None:
            raise ir.passes.PreconditionError(f"the graph is not canonical: {text}")


class NamedPass(CanonicalPass):
    """A pass on a canonical graph that finds nodes by the names that a plan has for them."""

    def requires(self, model: ir.Model) -> None:
        """Every node has a name of its own, besides."""
        super().requires(model)
        if (text := not_named(model)) is not None:
            raise ir.passes.PreconditionError(text)


def promise(wrong: str | None) -> None:
    """End a pass that left something undone, told in words; None where nothing is.

    Raises:
        PostconditionError: something is.
    """
    if wrong is not None:
        raise ir.passes.PostconditionError(wrong)


def not_canonical(model: ir.Model) -> str | None:
    """Why a graph is not in the form that passes expect, in words; None where it is."""
    return not_inlined(model) or not_lifted(model) or _overridable(model)


def not_inlined(model: ir.Model) -> str | None:
    """Which function is none of ours, in words."""
    strangers = (f for f in model.functions.values() if f.domain != DOMAIN)
    return next((f"function {f.domain}::{f.name} was not inlined" for f in strangers), None)


def not_lifted(model: ir.Model) -> str | None:
    """Which constant is a node still, in words."""
    constants = (node for node in model.graph if node.op_type == "Constant" and is_standard(node))
    return next((f"Constant '{node.name or ''}' is no initializer" for node in constants), None)


def _overridable(model: ir.Model) -> str | None:
    inputs = (value for value in model.graph.inputs if value.is_initializer())
    return next((f"initializer '{value.name or ''}' is an input, too" for value in inputs), None)


def not_named(model: ir.Model) -> str | None:
    """Which name several nodes have, or none, in words; None where every node has one of its own, as plans need it."""
    name, count = next(iter(Counter(node.name or "" for node in model.graph).most_common(1)), ("", 1))
    nameless = any(not node.name for node in model.graph)
    return f"several nodes are called '{'' if nameless else name}'" if nameless or count > 1 else None
