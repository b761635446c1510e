"""Give Attention what stands around it: the cache that keys and values are appended to, and the heads side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass
from spq_graph.passes.base.editor import drop_unused
from spq_graph.passes.base.heads import is_by_head
from spq_graph.passes.base.replace import add_constant
from spq_graph.passes.base.values import Size, all_same, attribute_of, is_standard, made_by, sizes_of, users_of

_OPERANDS = 3  # query, key, value
_PAST = (4, 5)


class AppendInAttention(CanonicalPass):
    """Let Attention append new keys and values to those of the cache, which otherwise two Concat do before it.

    What they returned are its second and third results then, by the same names.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [(node, caches) for node in _attentions(model.graph) if (caches := _caches(node)) is not None]
        for node, (keys, values) in found:
            past = [keys.inputs[0], values.inputs[0]]
            mask = node.inputs[_OPERANDS] if len(node.inputs) > _OPERANDS else None
            inputs = [node.inputs[0], keys.inputs[1], values.inputs[1], mask, *past]
            _rewritten(model, node, inputs, {}, [keys.outputs[0], values.outputs[0]])
        return ir.passes.PassResult(model, modified=bool(found))


class HeadsSideBySide(CanonicalPass):
    """Let Attention read and write heads side by side, [batch, length, heads * size], as products leave and take them.

    The operator takes both layouts; ONNX Runtime reads this one in place, where exporters' graphs transpose query, key
    and value, and the result back. Rotary embeddings in between are turned too.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in _attentions(model.graph):
            around = _around(node)
            if around is None:
                continue
            inputs = [_flat(model.graph, value) for value in node.inputs[:_OPERANDS]]
            heads = {"q_num_heads": around.heads, "kv_num_heads": around.shared}
            merged = around.merge.outputs[0]
            attention = _rewritten(model, node, [*inputs, *node.inputs[_OPERANDS:]], heads, node.outputs[1:])
            _take_over(attention.outputs[0], merged)
            drop_unused(model, [merged])
            modified = True
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True, slots=True)
class _Around:
    """What an attention has around it.

    Attributes:
        heads: of the query.
        shared: of keys and values.
        merge: the Reshape that puts the heads of the result side by side.
    """

    heads: int
    shared: int
    merge: ir.Node


def _attentions(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if node.op_type == "Attention" and is_standard(node)]


def _caches(node: ir.Node) -> tuple[ir.Node, ir.Node] | None:
    """The two nodes that append to what came in: keys first."""
    if any(node.inputs[at] is not None for at in _PAST if len(node.inputs) > at) or len(node.outputs) > 1:
        return None
    keys, values = made_by(node.inputs[1], "Concat"), made_by(node.inputs[2], "Concat")
    if keys is None or values is None or keys is values or not (_appends(keys, node) and _appends(values, node)):
        return None
    return keys, values


def _appends(joined: ir.Node, reader: ir.Node) -> bool:
    """Whether a node joins two values along the positions for one reader; what another computes might lead to it."""
    whole = joined.outputs[0]
    along = len(joined.inputs) == 2 and attribute_of(joined, "axis", 0) in (-2, 2) and len(sizes_of(whole)) == 4
    return along and list(users_of(whole)) == [reader]


def _around(node: ir.Node) -> _Around | None:
    """Heads of an attention that can be side by side before it and behind it; None where they cannot."""
    counts = [_heads_of(value) for value in node.inputs[:_OPERANDS]]
    back = _only_reader(node.outputs[0], "Transpose")
    merge = _only_reader(back.outputs[0], "Reshape") if back is not None else None
    if back is None or merge is None or not is_by_head(back):
        return None
    heads, shared, of_values = counts
    merged = _same_but_merged(sizes_of(back.outputs[0]), sizes_of(merge.outputs[0]))
    if heads is None or shared is None or shared != of_values or not merged:
        return None
    return _Around(heads, shared, merge)


def _heads_of(value: ir.Value | None) -> int | None:
    """How many heads a value has that was made with them side by side, before or behind a rotary embedding."""
    rotary = _rotary(value)
    turn = made_by(rotary.inputs[0] if rotary is not None else value, "Transpose")
    sizes = sizes_of(turn.inputs[0]) if turn is not None else []
    if turn is None or not is_by_head(turn) or len(sizes) != 4:
        return None
    heads, size = sizes[2:]
    return heads if isinstance(heads, int) and isinstance(size, int) else None


def _rotary(value: ir.Value | None) -> ir.Node | None:
    """The rotary embedding of all of a head that makes a value."""
    node = made_by(value, "RotaryEmbedding")
    return node if node is not None and not node.attributes else None


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    """The node that alone reads a value, as its first operand, if it is ONNX's own operator of that name."""
    uses = list(value.uses())
    node = uses[0].node if len(uses) == 1 and not uses[0].idx and not value.is_graph_output() else None
    return node if node is not None and node.op_type == op_type and is_standard(node) else None


def _same_but_merged(apart: Sequence[Size], merged: Sequence[Size]) -> bool:
    """Whether sizes are [a, b, c, d] and [a, b, c * d], and known to be."""
    if (len(apart), len(merged)) != (4, 3):
        return False
    (*places, heads, size), (*others, both) = apart, merged
    return all_same(places, others) and isinstance(heads, int) and isinstance(size, int) and both == heads * size


def _flat(graph: ir.Graph, value: ir.Value | None) -> ir.Value:
    """A value with its heads side by side."""
    assert value is not None
    rotary = _rotary(value)
    if rotary is None:
        return _untransposed(graph, value)
    heads = sizes_of(value)[1]
    assert isinstance(heads, int)
    flat = _untransposed(graph, rotary.inputs[0])
    turned = ir.node("RotaryEmbedding", [flat, *rotary.inputs[1:]], {"num_heads": heads}, name=f"{rotary.name}.flat")
    turned.metadata_props.update(rotary.metadata_props)
    graph.insert_after(rotary, turned)
    return _like(turned.outputs[0], value, flat.shape)


def _untransposed(graph: ir.Graph, value: ir.Value | None) -> ir.Value:
    """What was cut into heads, if a Reshape did that; else that with its heads put together again."""
    turn = made_by(value, "Transpose")
    assert turn is not None
    apart = turn.inputs[0]
    assert apart is not None
    cut = made_by(apart, "Reshape")
    if cut is not None and _same_but_merged(sizes_of(apart), sizes_of(cut.inputs[0])):
        whole = cut.inputs[0]
        assert whole is not None
        return whole
    shape = add_constant(graph, f"{apart.name}.flat.shape", ir.Tensor(np.asarray([0, 0, -1], np.int64)))
    joined = ir.node("Reshape", [apart, shape], name=f"{turn.name}.flat")
    *places, heads, size = sizes_of(apart)
    assert isinstance(heads, int)
    assert isinstance(size, int)
    graph.insert_after(turn, joined)
    return _like(joined.outputs[0], apart, ir.Shape([*places, heads * size]))


def _like(new: ir.Value, old: ir.Value, shape: ir.Shape | None) -> ir.Value:
    """Describe a value as another one in a shape of its own; returns it."""
    new.name, new.type, new.shape = f"{old.name}.flat", old.type, shape
    return new


def _rewritten(
    model: ir.Model, node: ir.Node, inputs: Sequence[ir.Value | None], more: dict[str, int], caches: Sequence[ir.Value]
) -> ir.Node:
    """An attention with other inputs, more attributes, and results that take the place of the caches' old ones."""
    graph = model.graph
    new = ir.node("Attention", inputs, name=node.name, num_outputs=1 + len(caches))
    new.attributes.update({**node.attributes, **{name: ir.AttrInt64(name, number) for name, number in more.items()}})
    new.metadata_props.update(node.metadata_props)
    before = [value for value in node.inputs if value is not None]
    graph.insert_before(node, new)
    for ours, old in zip(new.outputs, [node.outputs[0], *caches], strict=True):
        _take_over(ours, old)
    graph.remove(node, safe=True)
    drop_unused(model, [value for value in before if value not in new.inputs])
    return new


def _take_over(new: ir.Value, old: ir.Value) -> None:
    """Name, type, shape and readers of a value, for another; a graph's output too."""
    name = old.name
    new.type, new.shape = old.type, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}.before"
    new.name = name
