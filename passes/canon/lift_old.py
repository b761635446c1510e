"""Bring a graph of opset 7 to 12 to opset 13, the first with the operators that quantized products are made of.

Told one by one, as the lift to newer opsets is: whatever else changed takes more types, or axes counted from the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from spq_graph.passes.base.replace import add_constant
from spq_graph.passes.base.values import is_standard
from spq_graph.passes.base.wellformed import EXPORT_NEWER
from spq_graph.terms.errors import GraphError
from spq_graph.terms.targets import OLDEST_LIFTED

TO = 13
FIRST_IR = 7  # of the ONNX file format, that knows opset 13
_Array = npt.NDArray[np.generic]
_Change = Callable[[ir.Graph, ir.Node], None]
_FLATTEN = frozenset({"Softmax", "LogSoftmax", "Hardmax"})


class LiftOld(ir.passes.InPlacePass):
    """Lift a graph of opset 7 to 12 to 13, with the same numbers; what cannot be lifted stays as it is."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        opset = opset_of(model)
        if opset >= TO or obstacle(model) is not None:
            return ir.passes.PassResult(model, modified=False)
        flattening = [n for n in _all(model) if n.op_type in _FLATTEN and n.inputs[0] is not None]
        if any(node.inputs[0].shape is None for node in flattening if node.inputs[0] is not None):
            ShapeInferencePass(strict_mode=False)(model)
            _note_ranks(model.graph)
        for node in _all(model):
            if not is_standard(node):
                continue
            since, change = CHANGES.get(node.op_type, (0, None))
            if change is not None and opset < since:
                change(model.graph, node)
            node.version = None  # whatever it was read with: the graph's counts
        imports = model.graph.opset_imports
        imports.pop("ai.onnx", None)
        imports[""] = TO
        model.ir_version = max(model.ir_version, FIRST_IR)
        return ir.passes.PassResult(model, modified=True)


def refuse_old(model: ir.Model, where: str) -> None:
    """Refuse a graph whose opset is too old still.

    Raises:
        GraphError: saying what kept it from being lifted.
    """
    if opset_of(model) < TO:
        why = obstacle(model) or "it was not lifted"
        raise GraphError(
            f"the graph has opset {opset_of(model)}, and products in integers take {TO}: {why}",
            where=where,
            remedy=EXPORT_NEWER,
        )


def obstacle(model: ir.Model) -> str | None:
    """What keeps an old graph from being lifted, in words; None where nothing does."""
    opset = opset_of(model)
    if opset < OLDEST_LIFTED:
        return f"it cannot be lifted from one before {OLDEST_LIFTED}"
    for node in _all(model):
        since, why = REFUSED.get(node.op_type, (0, lambda _: True))
        if opset < since and is_standard(node) and why(node):
            return f"{node.op_type} '{node.name or ''}' of that opset cannot be lifted"
    return None


def opset_of(model: ir.Model) -> int:
    """The opset of ONNX's own operators that a graph has, under either name of their domain."""
    imports = model.graph.opset_imports
    return imports.get("", imports.get("ai.onnx", 1))


def _all(model: ir.Model) -> Sequence[ir.Node]:
    return list(model.graph.all_nodes())


def _note_ranks(graph: ir.Graph) -> None:
    """Give values whose shape is not known one of as many free axes as operators tell that they have."""
    for node in graph:
        if not is_standard(node) or not node.outputs or node.outputs[0].shape is not None:
            continue
        rank = _rank_of(node)
        if rank is not None:
            for output in node.outputs:
                output.shape = ir.Shape([None] * rank)


def _rank_of(node: ir.Node) -> int | None:
    """How many axes a result has, by those of what it is made of; None where that does not tell."""
    ranks = [None if value is None or value.shape is None else len(value.shape) for value in node.inputs]
    known = [rank for rank in ranks if rank is not None]
    if node.op_type == "Reshape":
        shape = node.inputs[1].shape if node.inputs[1] is not None else None
        return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None
    if node.op_type in _BROADCAST or node.op_type == "MatMul":
        told = len(known) == len(ranks) and (node.op_type != "MatMul" or min(known, default=0) > 1)
        return max(known) if told else None
    if not ranks or ranks[0] is None:
        return None
    axes = node.attributes.get("axes")
    count = len(axes.as_ints()) if axes is not None else None
    if node.op_type in ("Squeeze", "Unsqueeze"):
        return None if count is None else ranks[0] + (count if node.op_type == "Unsqueeze" else -count)
    if node.op_type.startswith("Reduce"):
        gone = ranks[0] if count is None else count
        return ranks[0] if node.attributes.get_int("keepdims", 1) else ranks[0] - gone
    return ranks[0] if node.op_type in _KEEP_RANK else None


_BROADCAST = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Where"})
_KEEP_RANK = frozenset(
    {
        "Cast",
        "Clip",
        "Concat",
        "Dropout",
        "Erf",
        "Identity",
        "LogSoftmax",
        "Neg",
        "Relu",
        "Sigmoid",
        "Slice",
        "Softmax",
        "Split",
        "Sqrt",
        "Tanh",
        "Transpose",
    }
)


def _add_input(main: ir.Graph, node: ir.Node, place: int, what: str, array: _Array) -> None:
    """Give a node a constant operand, which lies in the main graph, where every subgraph sees it."""
    if len(node.inputs) <= place:
        node.resize_inputs(place + 1)
    node.replace_input_with(place, add_constant(main, f"{node.name or node.outputs[0].name}.{what}", ir.Tensor(array)))


def _integers(name: str, place: int) -> _Change:
    """An attribute of integers that became an input."""

    def change(main: ir.Graph, node: ir.Node) -> None:
        if (given := node.attributes.pop(name, None)) is not None:
            numbers = [given.as_int()] if given.type is ir.AttributeType.INT else list(given.as_ints())
            _add_input(main, node, place, name, np.array(numbers, dtype=np.int64))

    return change


def _several(*changes: _Change) -> _Change:
    def change(main: ir.Graph, node: ir.Node) -> None:
        for one in changes:
            one(main, node)

    return change


def _number(name: str, place: int) -> _Change:
    """An attribute of one number that became an input, of the type of what the node reads."""

    def change(main: ir.Graph, node: ir.Node) -> None:
        if (given := node.attributes.pop(name, None)) is not None:
            kind = node.inputs[0].dtype if node.inputs[0] is not None else None
            dtype = (kind or ir.DataType.FLOAT).numpy()
            _add_input(main, node, place, name, np.array(given.as_float(), dtype=dtype))

    return change


def _slice_axes(main: ir.Graph, node: ir.Node) -> None:
    """Starts, ends and axes, in this order; without axes they are the first ones, as ever."""
    _several(_integers("starts", 1), _integers("ends", 2), _integers("axes", 3))(main, node)


def _over_one_axis(main: ir.Graph, node: ir.Node) -> None:
    """What was computed over all axes from one on: over the last, of a matrix, where that one is not the last."""
    value, graph = node.inputs[0], node.graph
    axis = node.attributes.get_int("axis", 1)
    rank = len(value.shape) if value is not None and value.shape is not None else None
    node.attributes["axis"] = ir.AttrInt64("axis", axis)
    if value is None or graph is None or axis == -1 or (rank is not None and axis == rank - 1):
        return
    name = node.name or node.outputs[0].name or node.op_type
    flat = ir.node("Flatten", [value], {"axis": axis}, name=f"{name}.flat")
    shape = ir.node("Shape", [value], name=f"{name}.shape")
    result = node.outputs[0]
    back = ir.node("Reshape", [result, shape.outputs[0]], name=f"{name}.back")
    flat.outputs[0].type = value.type
    back.outputs[0].type, back.outputs[0].shape = result.type, value.shape
    result.shape = None
    kept = result.name
    result.replace_all_uses_with(back.outputs[0], replace_graph_outputs=True)
    back.replace_input_with(0, result)
    graph.insert_before(node, [flat, shape])
    graph.insert_after(node, back)
    node.replace_input_with(0, flat.outputs[0])
    node.attributes["axis"] = ir.AttrInt64("axis", -1)
    result.name, back.outputs[0].name = f"{kept}.flat", kept


def _as_scatter_elements(main: ir.Graph, node: ir.Node) -> None:
    node.op_type = "ScatterElements"


def _drop(*names: str) -> _Change:
    """Attributes that say nothing of what is computed where nothing is trained."""

    def change(main: ir.Graph, node: ir.Node) -> None:
        for name in names:
            node.attributes.pop(name, None)

    return change


# The opset that changed how an operator says what it does, and what brings a node over.
CHANGES: dict[str, tuple[int, _Change]] = {
    **dict.fromkeys(sorted(_FLATTEN), (13, _over_one_axis)),
    **dict.fromkeys(("ReduceSum", "Squeeze", "Unsqueeze"), (13, _integers("axes", 1))),
    "Split": (13, _integers("split", 1)),
    "Clip": (11, _several(_number("min", 1), _number("max", 2))),
    "Pad": (11, _several(_integers("pads", 1), _number("value", 2))),
    "Slice": (10, _slice_axes),
    "TopK": (10, _integers("k", 1)),
    "Scatter": (11, _as_scatter_elements),
    "Dropout": (12, _drop("ratio")),
    "BatchNormalization": (9, _drop("spatial")),
}
# Likewise, where nothing brings a node over: none of them is found in language models.
REFUSED: dict[str, tuple[int, Callable[[ir.Node], bool]]] = {
    **dict.fromkeys(("Resize", "Upsample"), (11, lambda node: True)),
    "Scan": (9, lambda node: True),
    "Dropout": (10, lambda node: any(value.uses() for value in node.outputs[1:])),
    "BatchNormalization": (9, lambda node: node.attributes.get_int("spatial", 1) != 1),
}
