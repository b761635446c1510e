"""Finds the projections around attention, whatever the exporter made of the attention itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from spq_graph.passes.base.values import is_standard, users_of, weight_of

# Fused attention operators: inputs 0, 1, 2 are query, key, value; key and value are absent where packed into query.
_FUSED = frozenset({"Attention", "GroupQueryAttention", "MultiHeadAttention", "PagedAttention"})
# What may stand between the scores q @ k and the softmax: scale, mask, soft cap, casts.
_SCORE_OPS = frozenset(
    {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Tanh", "Max", "Min", "Concat", "Slice", "Reshape"}
)
_AFTER_SOFTMAX = frozenset({"Cast", "Identity", "Where", "Dropout", "Slice", "IsNaN", "Reshape"})
_OF_ACTIVATIONS = frozenset({"Einsum", "FusedMatMul", "MatMul"})
_MOVES = frozenset({"Reshape", "Transpose", "Cast", "Identity", "Squeeze", "Unsqueeze", "Dropout", "Mul", "Slice"})


@dataclass(frozen=True, slots=True)
class AttentionCore:
    """The node that mixes the values, and where its operands come from."""

    node: ir.Node
    query: ir.Value
    key: ir.Value | None
    value: ir.Value | None


def find_cores(graph: ir.Graph) -> Iterator[AttentionCore]:
    """Every attention of the graph: fused operators, and softmax(q @ k) @ v written out."""
    for node in graph:
        if node.op_type in _FUSED:
            query, key, value = [*node.inputs, None, None, None][:3]
            # ONNX Runtime's own Attention multiplies by its packed weights itself: no projection stands before it.
            holds_weights = not is_standard(node) and weight_of(key) is not None
            if query is not None and not holds_weights:
                yield AttentionCore(node, query, key, value)
        elif node.op_type == "Softmax":
            core = _written_out(node)
            if core is not None:
                yield core


def _written_out(softmax: ir.Node) -> AttentionCore | None:
    scores = _producer_through(softmax.inputs[0], _SCORE_OPS)
    mixed, probabilities = _consumer_through(softmax.outputs[0], _AFTER_SOFTMAX)
    if scores is None or mixed is None or scores.inputs[0] is None:
        return None
    value = next((v for v in mixed.inputs if v is not probabilities), None)
    if weight_of(scores.inputs[1]) is not None or weight_of(value) is not None:
        return None  # a classifier's softmax, or pooling: one operand is a weight
    return AttentionCore(mixed, scores.inputs[0], scores.inputs[1], value)


def _producer_through(value: ir.Value | None, through: frozenset[str]) -> ir.Node | None:
    """The nearest product that a value is computed from."""
    queue, seen = deque([value]), set[ir.Node]()
    while queue:
        node = v.producer() if (v := queue.popleft()) is not None else None
        if node is None or node in seen or len(seen) > 32:
            continue
        seen.add(node)
        if node.op_type in _OF_ACTIVATIONS:
            return node
        if node.op_type in through:
            queue.extend(node.inputs)
    return None


def _consumer_through(value: ir.Value, through: frozenset[str]) -> tuple[ir.Node | None, ir.Value]:
    """The nearest product that reads a value, and as what it reads it."""
    queue, seen = deque([value]), set[ir.Node]()
    while queue:
        value = queue.popleft()
        for node in users_of(value):
            if node.op_type in _OF_ACTIVATIONS:
                return node, value
            if node.op_type in through and node not in seen and len(seen) < 32:
                seen.add(node)
                queue.extend(node.outputs)
    return None, value


def sites_behind(value: ir.Value | None, sites: set[ir.Node], stops: set[ir.Node], limit: int = 400) -> list[ir.Node]:
    """The nearest site nodes that a value is computed from; walks through rotary embedding, norms and caches.

    What is behind `stops` does not count.
    """
    found: dict[ir.Node, None] = {}
    queue, seen = deque([value]), set[ir.Node]()
    while queue and len(seen) < limit:
        node = v.producer() if (v := queue.popleft()) is not None else None
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in sites:
            found[node] = None
        elif node.op_type not in ("Shape", "Size") and node not in stops:
            queue.extend(node.inputs)
    return list(found)


def site_after(core: ir.Node, sites: set[ir.Node]) -> ir.Node | None:
    """The site that reads an attention's output, seen through moves of data and gating."""
    queue, seen = deque(core.outputs[:1]), set[ir.Node]()
    while queue and len(seen) < 32:
        for node in users_of(queue.popleft()):
            if node in sites:
                return node
            if node.op_type in _MOVES and node not in seen:
                seen.add(node)
                queue.extend(node.outputs)
    return None
