"""Calls of spq::Fp8MatMul that its library refuses, told before anything runs: the function has no way to refuse.

Where no library is, ONNX Runtime computes the function that the file carries, and that takes an `a_type` of another
format, scales of zero or NaN, and scales in shapes that happen to broadcast.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import is_fp8_matmul
from spq_graph.passes.base.values import Weight, integer_of, weight_of
from spq_graph.passes.numbers.fp8 import E4M3, E5M2, Fp8Format, panel_shape

_FORMS = {form.element_type: form for form in (E4M3, E5M2)}
_AS_THEY_ARE = int(ir.DataType.FLOAT)
_MOST = 1 << 31  # rows or columns


def wrong_fp8_calls(model: ir.Model) -> Iterator[str]:
    """What is wrong with calls of the operator, node by node, in words; one thing of each node.

    What only a run can tell, as the value of a scale that is computed, is left to the library.
    """
    for node in model.graph.all_nodes():
        if is_fp8_matmul(node):
            text = next(_wrong(node), None)
            if text is not None:
                yield f"{node.name or 'a node without a name'}: {text}"


def _wrong(node: ir.Node) -> Iterator[str]:
    sizes = [integer_of(node, name) for name in ("K", "N")]
    if not all(size is not None and 0 < size <= _MOST for size in sizes):
        yield f"attributes K and N must be the weight's true size, both positive; they are {sizes[0]} and {sizes[1]}"
        return
    rows, columns = (int(size or 0) for size in sizes)
    a_type = integer_of(node, "a_type") if "a_type" in node.attributes else _AS_THEY_ARE
    if a_type not in (_AS_THEY_ARE, *_FORMS):
        yield f"attribute a_type must be 1, 17 (FLOAT8E4M3FN) or 19 (FLOAT8E5M2); it is {a_type}"
    if len(node.inputs) != 4 or any(value is None for value in node.inputs):
        yield "it has not the four inputs A, B, b_scale and a_scale"
        return
    last = node.inputs[0].shape[-1] if node.inputs[0] is not None and node.inputs[0].shape else None
    if isinstance(last, int) and last != rows:
        yield f"its activation has {last} columns, and its weight K = {rows} rows"
    b, b_scale, a_scale = (weight_of(value) for value in node.inputs[1:])
    if b is not None:
        yield from _wrong_panels(b, (rows, columns))
    if b_scale is not None:
        yield from _wrong_weight_scale(b_scale, columns, _FORMS.get(int(b.tensor.dtype)) if b is not None else None)
    if a_scale is not None:
        yield from _wrong_activation_scale(a_scale, rounds=a_type != _AS_THEY_ARE)


def _wrong_panels(b: Weight, shape: tuple[int, int]) -> Iterator[str]:
    if int(b.tensor.dtype) not in _FORMS:
        yield f"B is {b.tensor.dtype.name}, not FLOAT8E4M3FN or FLOAT8E5M2"
    elif b.shape != panel_shape(shape):
        yield f"B is {list(b.shape)}, but K = {shape[0]} and N = {shape[1]} want panels {list(panel_shape(shape))}"


def _wrong_weight_scale(scale: Weight, columns: int, form: Fp8Format | None) -> Iterator[str]:
    if scale.dtype is not ir.DataType.FLOAT:
        yield f"b_scale is {scale.dtype.name}, not FLOAT"
    elif scale.shape not in ((), (1,), (1, 1), (columns,)):
        yield f"b_scale is {list(scale.shape)}; it must hold one number or N = {columns}"
    else:
        numbers = scale.numpy().astype(np.float64)
        most = float(np.finfo(np.float32).max) / (form.largest if form is not None else 1.0)
        wrong = numbers[~(np.abs(numbers) <= most)]
        if wrong.size:
            yield f"b_scale holds {wrong.reshape(-1)[0]:g}; it must be finite, and so must be all weights by it"


def _wrong_activation_scale(scale: Weight, *, rounds: bool) -> Iterator[str]:
    if scale.dtype is not ir.DataType.FLOAT:
        yield f"a_scale is {scale.dtype.name}, not FLOAT"
    elif scale.shape not in ((), (1,)):
        yield f"a_scale must be a single number; it is {list(scale.shape)}"
    else:
        number = float(scale.numpy().reshape(-1)[0])
        if rounds and not (number > 0 and np.isfinite(number)):
            yield f"a_scale is {number:g}; it must be positive and finite"
        if not rounds and number != 1.0:
            yield f"a_scale is {number:g}; where activations are not rounded it must be 1"
