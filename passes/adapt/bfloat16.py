"""Compute in float32 what a graph computes in bfloat16, which ONNX Runtime's CPU provider cannot.

Every bfloat16 is a float32, so weights stay stored as they are and are widened exactly where they are used; sums and
products are then rounded less than they were.
"""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass, promise
from spq_graph.passes.base.editor import Editor
from spq_graph.passes.base.values import is_standard, users_of

_FROM, _TO = ir.DataType.BFLOAT16, ir.DataType.FLOAT
# Attributes that name an element type.
_TYPES = ("to", "dtype", "output_dtype")
# A table of embeddings is looked up as it is, and what comes of it is widened.
_LOOKUPS = frozenset({"Gather", "GatherND"})


def holds_bfloat16(model: ir.Model) -> bool:
    """Whether any weight or value of a model is bfloat16."""
    values = (
        v
        for graph in model.graphs()
        for v in (*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs))
    )
    return any(v.dtype is _FROM or (v.const_value is not None and v.const_value.dtype is _FROM) for v in values)


class WidenBfloat16(CanonicalPass):
    """Turn every bfloat16 value of a graph, its inputs and outputs included, into float32; weights stay stored as is.

    The graph must have been through `Canonicalize`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not holds_bfloat16(model):
            return ir.passes.PassResult(model, modified=False)
        editor = Editor(model)
        looked_up = self._widen_weights(editor)
        for graph in model.graphs():
            for value in (*graph.inputs, *(o for node in graph for o in node.outputs)):
                if value.dtype is _FROM and value not in looked_up:
                    value.dtype = _TO
        for node in model.graph.all_nodes():
            _retype(node)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Nothing goes in or out as bfloat16."""
        left = (v.name for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype is _FROM)
        promise(next((f"'{name}' is bfloat16 still" for name in left), None))

    def _widen_weights(self, editor: Editor) -> set[ir.Value]:
        """Put a Cast behind every weight of the main graph, or behind what is looked up in it; returns the latter."""
        looked_up: set[ir.Value] = set()
        for graph in editor.model.graphs():
            for value in list(graph.initializers.values()):
                tensor = value.const_value
                if tensor is None or tensor.dtype is not _FROM:
                    continue
                if graph is not editor.model.graph or value.is_graph_output():
                    value.const_value = ir.Tensor(tensor.numpy().astype("float32"), name=value.name)
                    value.dtype = _TO
                    continue
                looked_up |= self._widen_weight(editor, value)
        return looked_up

    def _widen_weight(self, editor: Editor, weight: ir.Value) -> set[ir.Value]:
        tables = [n for n in users_of(weight) if n.op_type in _LOOKUPS and is_standard(n) and n.inputs[0] is weight]
        found = {node.outputs[0] for node in tables}
        for node in tables:
            out = node.outputs[0]
            out.dtype = _FROM
            cast = ir.node("Cast", [out], {"to": int(_TO)}, name=editor.fresh(f"{node.name}.widened"))
            cast.outputs[0].dtype, cast.outputs[0].shape = _TO, out.shape
            editor.model.graph.insert_after(node, cast)
            editor.take_over(out, cast.outputs[0])
            cast.replace_input_with(0, out)
        rest = [use for use in weight.uses() if use.node not in tables]
        if rest:
            cast = ir.node("Cast", [weight], {"to": int(_TO)}, name=editor.fresh(f"{weight.name}.widened"))
            cast.outputs[0].name = editor.fresh(f"{weight.name}.float32")
            cast.outputs[0].dtype, cast.outputs[0].shape = _TO, weight.shape
            first = next(iter(editor.model.graph))
            editor.model.graph.insert_before(first, cast)
            for user, index in rest:
                user.replace_input_with(index, cast.outputs[0])
        return found


def _retype(node: ir.Node) -> None:
    """Let a node name float32 where it named bfloat16."""
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if name in _TYPES and attribute.type is ir.AttributeType.INT and attribute.as_int() == int(_FROM):
            node.attributes[name] = ir.AttrInt64(name, int(_TO))
        elif attribute.type is ir.AttributeType.TENSOR and attribute.as_tensor().dtype is _FROM:
            node.attributes[name] = ir.AttrTensor(name, ir.Tensor(attribute.as_tensor().numpy().astype("float32")))
