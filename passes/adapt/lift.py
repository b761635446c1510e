"""Bring an older graph to a newer opset in place, so that names, metadata and weights stay as they are.

onnx's own converter drops the metadata that names modules, and needs the whole model in one message. Between opsets 13
and 23 few operators change other than by taking more types, so that they can be told one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass, promise
from spq_graph.passes.base.editor import Editor
from spq_graph.passes.base.values import is_standard
from spq_graph.passes.numbers.fp8 import OLDEST_OPSET
from spq_graph.terms.errors import GraphError

FROM_OPSET, NEWEST_OPSET = 13, 23
FIRST_IR = {19: 9, 20: 9, 21: 10, 22: 10, 23: 11}  # of the ONNX file format, that knows an opset's types
_AXES_BECAME_AN_INPUT = frozenset(
    {
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSumSquare",
    }
)


class LiftOpset(CanonicalPass):
    """Bring a graph from opset 13 or later to a newer one; a graph that has it, or a newer one, stays as it is.

    The graph must have been through `Canonicalize`. Calling it raises GraphError where the graph cannot be lifted.

    Args:
        to: the opset wanted, at most 23; by default 19, the first that has FP8.
    """

    def __init__(self, to: int = OLDEST_OPSET) -> None:
        super().__init__()
        assert to <= NEWEST_OPSET
        self._to = to

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        opset = model.graph.opset_imports.get("", 1)
        if opset >= self._to:
            return ir.passes.PassResult(model, modified=False)
        obstacle = obstacle_to(model, self._to)
        if obstacle is not None:
            remedy = f"export the model again with opset {self._to} or later, or use another precision"
            raise GraphError(obstacle.what, where=obstacle.where, remedy=remedy)
        editor = Editor(model)
        for node in model.graph.all_nodes():
            if not is_standard(node):
                continue
            since, adapt = CHANGES.get(node.op_type, (0, _leave))
            if opset < since <= self._to:
                adapt(editor, node)
            node.version = None  # whatever it was read with: the graph's counts
        # Every call has been inlined by now; what nothing calls would still have to be of the graph's opset.
        model.functions.clear()
        model.graph.opset_imports[""] = self._to
        model.ir_version = max(model.ir_version, FIRST_IR.get(self._to, 0))
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """The graph has the opset."""
        older = model.graph.opset_imports.get("", 1) < self._to
        promise(f"the graph has no opset {self._to}" if older else None)


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a graph cannot be lifted, and the node that is in the way."""

    what: str
    where: str = ""


def obstacle_to(model: ir.Model, to: int) -> Obstacle | None:
    """What keeps a graph from being lifted to an opset, or None."""
    opset = model.graph.opset_imports.get("", 1)
    if opset < FROM_OPSET:
        return Obstacle(f"the graph has opset {opset}, which cannot be lifted to {to}")
    for node in model.graph.all_nodes():
        since, why = REFUSED.get(node.op_type, (0, ""))
        harmless = node.op_type == "BatchNormalization" and len(node.outputs) == 1
        if opset < since <= to and is_standard(node) and not harmless:
            return Obstacle(f"{node.op_type} {why}cannot be lifted", node.name or "")
    return None


def _leave(editor: Editor, node: ir.Node) -> None:
    pass


def _axes_as_input(editor: Editor, node: ir.Node) -> None:
    axes = node.attributes.pop("axes", None)
    if axes is None:
        return
    numbers = tuple(axes.as_ints())
    name = "spq_graph.axes" + "".join(f"_{number}" for number in numbers)
    if name not in editor.shared:
        editor.shared[name] = editor.constant(name, ir.Tensor(np.array(numbers, dtype=np.int64)))
    node.resize_inputs(2)
    node.replace_input_with(1, editor.shared[name])


def _say_how_many(editor: Editor, node: ir.Node) -> None:
    """A Split without sizes went by the number of its outputs, which now must be said."""
    if len(node.inputs) < 2 or node.inputs[1] is None:
        node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(node.outputs))


def _keep_half_pixels_off(editor: Editor, node: ir.Node) -> None:
    """The default became another; before there was a choice, it was this."""
    node.attributes.setdefault("coordinate_transformation_mode", _OUTPUT_HALF_PIXEL)


_OUTPUT_HALF_PIXEL = ir.AttrString("coordinate_transformation_mode", "output_half_pixel")
# The opset that changed an operator's meaning, and what brings a node over. Whatever else changed takes more types, or
# has new attributes and inputs whose defaults are what was.
CHANGES: dict[str, tuple[int, Callable[[Editor, ir.Node], None]]] = {
    **dict.fromkeys(_AXES_BECAME_AN_INPUT, (18, _axes_as_input)),
    "Split": (18, _say_how_many),
    "RoiAlign": (16, _keep_half_pixels_off),
}
# Likewise, where nothing brings a node over: none of them is found in language models.
REFUSED: dict[str, tuple[int, str]] = {
    "BatchNormalization": (14, "in training mode "),
    "DFT": (20, ""),
    "GridSample": (20, ""),
    "GroupNormalization": (21, ""),
}
