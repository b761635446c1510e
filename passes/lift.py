"""Lift: bring an older graph to a newer opset in place, so that names, metadata and weights stay as they are.

onnx's own converter drops the metadata that names modules, and needs the whole model in one message. Between opsets 13
and 19 few operators change other than by taking more types, so that they can be told one by one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from spq_graph.errors import GraphError
from spq_graph.passes.editor import Editor
from spq_graph.passes.operator import OLDEST_OPSET
from spq_graph.passes.values import is_standard

FROM_OPSET = 13
_AXES_BECAME_AN_INPUT = frozenset({
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
})  # fmt: skip


class LiftOpset(ir.passes.InPlacePass):
    """Bring a graph from opset 13 to 18 to opset 19, the first that has FP8; a newer one stays as it is.

    The graph must have been through `Canonicalize`. Calling it raises GraphError where the graph cannot be lifted.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        opset = model.graph.opset_imports.get("", 1)
        if opset >= OLDEST_OPSET:
            return ir.passes.PassResult(model, modified=False)
        if opset < FROM_OPSET:
            raise GraphError(f"the graph has opset {opset}, which cannot be lifted to {OLDEST_OPSET}", remedy=_REMEDY)
        editor = Editor(model)
        for node in model.graph.all_nodes():
            if not is_standard(node):
                continue
            since, adapt = CHANGES.get(node.op_type, (0, _leave))
            if opset < since:
                adapt(editor, node)
            node.version = None  # whatever it was read with: the graph's counts
        # Every call has been inlined by now; what nothing calls would still have to be of the graph's opset.
        model.functions.clear()
        model.graph.opset_imports[""] = OLDEST_OPSET
        return ir.passes.PassResult(model, modified=True)


_REMEDY = f"export the model again with opset {OLDEST_OPSET} or later, or use a precision other than FP8"


def _leave(editor: Editor, node: ir.Node) -> None:
    pass


def _axes_as_input(editor: Editor, node: ir.Node) -> None:
    axes = node.attributes.pop("axes", None)
    if axes is None:
        return
    numbers = tuple(axes.as_ints())
    name = "spq_graph.axes" + "".join(f"_{number}" for number in numbers)
    if name not in editor.shared:
        editor.shared[name] = editor.constant(name, ir.tensor(np.array(numbers, dtype=np.int64)))
    node.resize_inputs(2)
    node.replace_input_with(1, editor.shared[name])


def _say_how_many(editor: Editor, node: ir.Node) -> None:
    """A Split without sizes went by the number of its outputs, which now must be said."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _keep_half_pixels_off(editor: Editor, node: ir.Node) -> None:
    """The default became another; before there was a choice, it was this."""
    node.attributes.setdefault("coordinate_transformation_mode", _OUTPUT_HALF_PIXEL)


def _refuse_training(editor: Editor, node: ir.Node) -> None:
    if len(node.outputs) > 1:
        raise GraphError(f"{node.op_type} in training mode cannot be lifted", where=node.name or "", remedy=_REMEDY)


_OUTPUT_HALF_PIXEL = ir.AttrString("coordinate_transformation_mode", "output_half_pixel")
# The opset that changed an operator's meaning, and what brings a node over. Whatever else changed takes more types, or
# has new attributes and inputs whose defaults are what was.
CHANGES: dict[str, tuple[int, Callable[[Editor, ir.Node], None]]] = {
    **dict.fromkeys(_AXES_BECAME_AN_INPUT, (18, _axes_as_input)),
    "Split": (18, _say_how_many),
    "RoiAlign": (16, _keep_half_pixels_off),
    "BatchNormalization": (14, _refuse_training),
}
