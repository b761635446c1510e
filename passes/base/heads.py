"""How heads lie in a graph: [batch, heads, length, size], where each may be a copy for a query head that shares it."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.base.values import all_same, made_by, scalar_of, sizes_of

_BY_HEAD = (0, 2, 1, 3)  # [batch, length, heads, size] and back


def is_by_head(node: ir.Node) -> bool:
    """Whether a Transpose exchanges the axes of heads and positions."""
    order = node.attributes.get("perm")
    return order is not None and tuple(order.as_ints()) == _BY_HEAD


def unrepeated(value: ir.Value) -> ir.Value | None:
    """The keys or values before each was repeated for the query heads that share it; None where none was.

    Args:
        value: [batch, heads, length, size], where head h is a copy of head h / times.

    Returns:
        [batch, heads / times, length, size].
    """
    flat = made_by(value, "Reshape")
    spread = made_by(flat.inputs[0], "Expand") if flat is not None else None
    apart = made_by(spread.inputs[0], "Unsqueeze") if spread is not None else None
    few = apart.inputs[0] if apart is not None else None
    if apart is None or spread is None or few is None or scalar_of(apart.inputs[1]) != 2:
        return None
    before, between, after = sizes_of(few), sizes_of(spread.outputs[0]), sizes_of(value)
    if (len(before), len(between), len(after)) != (4, 5, 4):
        return None
    (batch, heads, *rest), (_, _, times, *_), (_, repeated, *_) = before, between, after
    kept = all_same(before, [*between[:2], *between[3:]]) and all_same([batch, *rest], [after[0], *after[2:]])
    counted = isinstance(heads, int) and isinstance(times, int) and repeated == heads * times
    return few if kept and counted else None
