"""Which value is the residual stream behind a product: where what it gives is added to what went by it."""

from __future__ import annotations

from collections import deque

import onnx_ir as ir

from spq_graph.passes.base.values import is_standard, users_of, weight_of
from spq_graph.terms.targets import CONTRIB

# Moves, constant factors and norms, written out or not, which some families have in front of the sum.
_PASSING = frozenset(
    {
        "Add",
        "Cast",
        "Div",
        "Identity",
        "LayerNormalization",
        "Mul",
        "Pow",
        "RMSNormalization",
        "Reciprocal",
        "ReduceMean",
        "Reshape",
        "SimplifiedLayerNormalization",
        "Sqrt",
        "Squeeze",
        "Sub",
        "Unsqueeze",
    }
)
# A sum and the norm behind it in one operator; the sum is the fourth of what they give, where they give it.
_SUM_AND_NORM = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
_MOST_NODES = 32


def residual_behind(value: ir.Value) -> ir.Value | None:
    """The residual stream with a value in it, or None where no sum of it with another activation follows.

    A sum that only another such sum reads, as beside attention that runs in parallel, is not the stream yet.

    Args:
        value: what a product gives, [..., N].
    """
    own, pending, left = {value}, deque(users_of(value)), _MOST_NODES
    while pending and left:
        node, left = pending.popleft(), left - 1
        if node.op_type in _SUM_AND_NORM and node.domain == CONTRIB:
            return node.outputs[3] if len(node.outputs) > 3 and node.outputs[3].name else None
        if node.op_type not in _PASSING or not is_standard(node):
            continue
        result = node.outputs[0]
        if node.op_type == "Add" and _adds_another(node, own):
            readers = list(users_of(result))
            parallel = len(readers) == 1 and readers[0].op_type == "Add" and _adds_another(readers[0], {result})
            return readers[0].outputs[0] if parallel else result
        if result not in own:
            own.add(result)
            pending.extend(users_of(result))
    return None


def _adds_another(node: ir.Node, own: set[ir.Value]) -> bool:
    """Whether a sum adds an activation that does not follow from these values."""
    others = [read for read in node.inputs if read is not None and read not in own]
    return len(others) == 1 and weight_of(others[0]) is None
