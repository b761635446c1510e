"""The operator spq::Fp8MatMul as a model-local function, so that a file runs where no library implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import DOMAIN, OLDEST_IR, OP, VERSION
from spq_graph.passes.forms.rules import Wanted
from spq_graph.passes.numbers.fp8 import ACTIVATIONS, PAIR, activation_scale
from spq_graph.terms.precision import Precision

_AS_THEY_ARE = int(ir.DataType.FLOAT)  # `a_type` where activations are not rounded


@dataclass(frozen=True, slots=True)
class Fp8Call:
    """What a plan asks of the operator at one site.

    Attributes:
        attributes: the node's.
        a_scale: scale of the activation, float32 []; 1 where it is not rounded.
        rounds: whether the activation is rounded to FP8.
    """

    attributes: dict[str, int]
    a_scale: np.float32
    rounds: bool

    @classmethod
    def of(cls, wanted: Wanted) -> Fp8Call:
        """The call for a site that is wanted in an FP8 precision.

        Raises:
            GraphError: the plan holds no range for an activation that is to be rounded.
        """
        rows, columns = wanted.site.shape
        form = ACTIVATIONS[wanted.site.precision]
        # What was rounded to FP8 is exact in bfloat16; elsewhere it is a question of taste.
        fast = form is not None or wanted.recipe.fp8_activations == "fast"
        a_type = _AS_THEY_ARE if form is None else form.element_type
        attributes = {"K": rows, "N": columns, "a_type": a_type, "fast": int(fast)}
        if form is None:
            return cls(attributes, np.float32(1.0), rounds=False)
        return cls(attributes, activation_scale(*wanted.range, form), rounds=True)


def precision_of_call(node: ir.Node) -> Precision:
    """The precision that a node of the operator has."""
    attribute = node.attributes.get("a_type")
    said = attribute is not None and attribute.type is ir.AttributeType.INT
    a_type = attribute.as_int() if attribute is not None and said else _AS_THEY_ARE
    rounded = {form.element_type: precision for precision, form in ACTIVATIONS.items() if form is not None}
    return rounded.get(a_type, Precision.W8FP8A16)


def add_function(model: ir.Model) -> None:
    """Give a model the operator's function and import its domain; does nothing where that is done."""
    function = fp8_matmul_function(model.graph.opset_imports[""])
    model.functions.setdefault(function.identifier(), function)
    model.graph.opset_imports.setdefault(DOMAIN, VERSION)
    model.ir_version = max(model.ir_version, OLDEST_IR)


def fp8_matmul_function(opset: int) -> ir.Function:
    """The operator in terms of ONNX's own, for a model of this opset; onnx wants both to have the same.

    The weight's scale is applied to the weight, so that ONNX Runtime folds all that is constant into one float32
    weight. `fast` is a word to kernels only. One function serves both kinds of activations, since overloads are not
    honoured before ONNX Runtime 1.31.
    """
    a, b, b_scale, a_scale = inputs = [ir.Value(name=name) for name in ("A", "B", "b_scale", "a_scale")]
    nodes: list[ir.Node] = []

    def op(output: str, op_type: str, *operands: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(op_type, operands, attributes, outputs=[ir.Value(name=output)], name=output)
        nodes.append(node)
        return node.outputs[0]

    def integers(name: str, *values: int) -> ir.Value:
        return op(name, "Constant", value_ints=values)

    def size(name: str) -> ir.Value:
        number = op(f"{name}_value", "Constant", value_int=_attribute("value_int", name))
        return op(f"{name}_end", "Reshape", number, integers(f"{name}_shape", 1))

    wide = op("A32", "Cast", a, to=int(ir.DataType.FLOAT))
    units = op("A_units", "Div", wide, a_scale)
    codes = op("A_rounded", "Cast", units, to=_attribute("to", "a_type"), saturate=1)
    finite = op("A_back", "Cast", codes, to=int(ir.DataType.FLOAT))
    # Saturation makes a number of an infinity, which must stay one; a finite quotient may overflow and must not.
    operand = op("X", "Where", op("A_infinite", "IsInf", wide), wide, finite)
    split = op(
        "B_split", "Reshape", op("B32", "Cast", b, to=int(ir.DataType.FLOAT)), integers("B_axes", 0, 0, 4, 2, 4, PAIR)
    )
    rows = op("B_rows", "Transpose", split, perm=[1, 5, 0, 3, 2, 4])
    padded = op("B_padded", "Flatten", rows, axis=2)
    ends = op("B_ends", "Concat", size("K"), size("N"), axis=0)
    weight = op("W", "Mul", op("B_cut", "Slice", padded, integers("B_starts", 0, 0), ends), b_scale)
    result = op("Y", "CastLike", op("Y32", "Mul", op("Y_units", "MatMul", operand, weight), a_scale), a)
    graph = ir.Graph(inputs, [result], nodes=nodes, opset_imports={"": opset}, name=OP)
    attributes = [
        ir.Attr("K", ir.AttributeType.INT, None),
        ir.Attr("N", ir.AttributeType.INT, None),
        ir.AttrInt64("a_type", _AS_THEY_ARE),
        ir.AttrInt64("fast", 0),
    ]
    return ir.Function(DOMAIN, OP, graph=graph, attributes=attributes)


def _attribute(name: str, of_call: str) -> ir.Attr:
    """An attribute of a node in the function that takes the value which the call gives."""
    return ir.RefAttr(name, of_call, ir.AttributeType.INT)
