"""The operator spq::Int8Gather as model-local functions: rows of a table that spq::Int8MatMul multiplies by.

Row n of the table is column n of the weight: its codes times their scale, and the numbers that stand in the rows of an
outlier branch, where the codes are zero.
"""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.forms.body import Body
from spq_graph.terms.kernels import GATHER_KERNEL

_FLOAT, _INT64 = int(ir.DataType.FLOAT), int(ir.DataType.INT64)


def gather_name(*, branch: bool) -> str:
    """The operator's name, for weights with an outlier branch or without."""
    return GATHER_KERNEL + "Branch" * branch


def gather_inputs(*, branch: bool) -> tuple[str, ...]:
    """Names of its inputs, all of them required; B and those behind `ids` as spq::Int8MatMul has them."""
    return "B", "ids", "b_scale", *(("channels", "rows") if branch else ())


def int8_gather_function(opset: int, *, branch: bool) -> ir.Function:
    """It in terms of ONNX's own operators, for a model of this opset, 15 or later; the result is float32 [..., K]."""
    body = Body(gather_inputs(branch=branch))
    op, inputs = body.op, body.inputs
    table = body.weight(flipped=True)
    ids = op("rows_read", "Cast", inputs["ids"], to=_INT64)
    last = body.integers("last", -1)
    # Gather refuses an id that is not below N. One scale for all becomes one for each row.
    scales = op("scales", "Expand", op("b_scales", "Reshape", inputs["b_scale"], last), body.size("N"))
    scale = op("scale", "Unsqueeze", op("scale_read", "Gather", scales, ids, axis=0), last)
    codes = op("codes", "Cast", op("codes_read", "Gather", table, ids, axis=0), to=_FLOAT)
    result = op("Y_units" if branch else "Y", "Mul", codes, scale)
    if branch:
        apart = op("rows_apart", "Transpose", inputs["rows"], perm=[1, 0])
        numbers = op("numbers", "Cast", op("numbers_read", "Gather", apart, ids, axis=0), to=_FLOAT)
        # A matrix of ones and zeros puts every number in its place.
        start, step = (op(name, "Constant", value_int=number) for name, number in (("first", 0), ("step", 1)))
        every = op("every", "Range", start, body.scalar("K"), step)
        channel = op("channel", "Unsqueeze", inputs["channels"], last)
        places = op("places", "Cast", op("equal", "Equal", channel, every), to=_FLOAT)
        result = op("Y", "Add", result, op("branch", "MatMul", numbers, places))
    return body.function(gather_name(branch=branch), result, opset)
