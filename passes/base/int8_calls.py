"""Calls of spq::Int8MatMul and spq::Int8Gather that the library refuses, told before anything runs.

The functions have no way to refuse: where no library is, ONNX Runtime computes the function that the file carries, and
that takes channels that are counted from the end, and biases in shapes that happen to broadcast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import is_int8_gather, is_int8_matmul
from spq_graph.passes.base.values import Weight, integer_of, weight_of
from spq_graph.passes.numbers.int8 import MOST_DEPTH, int8_panel_shape

_MOST = 1 << 31  # columns
_GATHERED = ("B", "ids", "b_scale")
_COMMON, _STATIC, _BRANCH = ("A", "B", "b_scale", "bias"), ("a_scale", "a_zero_point"), ("channels", "rows")
_TYPES = {
    "B": ir.DataType.INT8,
    "b_scale": ir.DataType.FLOAT,
    "bias": ir.DataType.FLOAT,
    "a_scale": ir.DataType.FLOAT,
    "a_zero_point": ir.DataType.UINT8,
    "channels": ir.DataType.INT64,
    "rows": ir.DataType.FLOAT16,
}


def wrong_int8_calls(model: ir.Model) -> Iterator[str]:
    """What is wrong with calls of spq::Int8MatMul, node by node, in words; one thing of each node."""
    yield from _wrong_calls(model, is_int8_matmul)


def wrong_gather_calls(model: ir.Model) -> Iterator[str]:
    """The same of spq::Int8Gather."""
    yield from _wrong_calls(model, is_int8_gather)


def _wrong_calls(model: ir.Model, wanted: Callable[[ir.Node], bool]) -> Iterator[str]:
    for node in filter(wanted, model.graph.all_nodes()):
        text = next(_wrong(node), None)
        if text is not None:
            yield f"{node.name or 'a node without a name'}: {text}"


def _wrong(node: ir.Node) -> Iterator[str]:
    rows, columns = (integer_of(node, name) or 0 for name in ("K", "N"))
    if not (0 < rows <= MOST_DEPTH and 0 < columns <= _MOST):
        yield (
            f"attributes K, at most {MOST_DEPTH}, and N must be the weight's true size, both positive; they are "
            f"{rows} and {columns}"
        )
        return
    names = (*_read_by(node), *(_BRANCH if node.op_type.endswith("Branch") else ()))
    if len(node.inputs) != len(names) or any(value is None for value in node.inputs):
        yield f"it has not the {len(names)} inputs {', '.join(names)}"
        return
    activation = node.inputs[0] if names[0] == "A" else None
    shape = activation.shape if activation is not None else None
    last = shape[-1] if shape else None
    if isinstance(last, int) and last != rows:
        yield f"its activation has {last} columns, and its weight K = {rows} rows"
    constants = {name: held for name, value in zip(names, node.inputs, strict=True) if (held := weight_of(value))}
    for name in ("A", "ids"):
        constants.pop(name, None)
    for name, held in constants.items():
        if held.tensor.dtype is not _TYPES[name]:
            yield f"{name} is {held.tensor.dtype.name}, not {_TYPES[name].name}"
    yield from _wrong_shapes(constants, rows, columns)
    yield from _wrong_numbers(constants, rows)


def _read_by(node: ir.Node) -> tuple[str, ...]:
    """What a node reads besides a branch."""
    if is_int8_gather(node):
        return _GATHERED
    return _COMMON if "ByToken" in node.op_type else (*_COMMON, *_STATIC)


def _wrong_shapes(constants: dict[str, Weight], rows: int, columns: int) -> Iterator[str]:
    panels = int8_panel_shape((rows, columns))
    if "B" in constants and constants["B"].shape != panels:
        yield f"B is {list(constants['B'].shape)}, but K = {rows} and N = {columns} want panels {list(panels)}"
    for name in ("b_scale", "bias"):
        if name in constants and constants[name].shape not in ((), (1,), (1, 1), (columns,)):
            yield f"{name} is {list(constants[name].shape)}; it must hold one number or N = {columns}"
    for name in _STATIC:
        if name in constants and constants[name].shape not in ((), (1,)):
            yield f"{name} must be a single number; it is {list(constants[name].shape)}"
    shapes = [constants[name].shape for name in _BRANCH if name in constants]
    if len(shapes) == len(_BRANCH) and (len(shapes[0]) != 1 or shapes[1] != (*shapes[0], columns)):
        yield f"channels is {list(shapes[0])} and rows is {list(shapes[1])}; they must be [C] and [C, N]"


def _wrong_numbers(constants: dict[str, Weight], rows: int) -> Iterator[str]:
    if "b_scale" in constants and not np.isfinite(constants["b_scale"].numpy()).all():
        yield "b_scale holds a number that is not finite"
    if "a_scale" in constants:
        number = float(constants["a_scale"].numpy().reshape(-1)[0])
        if not (number > 0 and np.isfinite(number)):
            yield f"a_scale is {number:g}; it must be positive and finite"
    if "channels" in constants:
        channels = np.asarray(constants["channels"].tensor.numpy()).reshape(-1)
        outside = channels[(channels < 0) | (channels >= rows)]
        if outside.size:
            yield f"channel {outside[0]} is not below K = {rows}"
