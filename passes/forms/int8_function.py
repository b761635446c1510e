"""The operator spq::Int8MatMul as model-local functions, so that a file runs in INT8 where no library implements it.

A function has one list of inputs, and newer overloads are not honoured by every ONNX Runtime that we allow: so the
operator has a name for each of its kinds, and each is a function without conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from spq_graph.passes.base.marks import DOMAIN, OLDEST_IR, VERSION
from spq_graph.passes.forms.body import Body
from spq_graph.passes.forms.steps import QUANTIZE
from spq_graph.passes.numbers.scales import SMALLEST

OLDEST_OPSET = 15  # that has CastLike
_AXES_ARE_INPUTS = 18  # of ReduceMax and ReduceMin, from this opset on
_FLOAT, _INT32 = int(ir.DataType.FLOAT), int(ir.DataType.INT32)


@dataclass(frozen=True, slots=True)
class Int8Kind:
    """One of the operator's kinds.

    Attributes:
        by_token: a scale and a zero point for every row, from its smallest and largest number; else given ones.
        branch: some channels do not count for the range, and go through their rows of the weight in floating point;
            B has zeros in those rows.
    """

    by_token: bool = False
    branch: bool = False

    @property
    def op_type(self) -> str:
        """Its name."""
        return "Int8MatMul" + "ByToken" * self.by_token + "Branch" * self.branch

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of its inputs, all of them required; `bias` of a single 0 adds nothing."""
        static = () if self.by_token else ("a_scale", "a_zero_point")
        return "A", "B", "b_scale", "bias", *static, *(("channels", "rows") if self.branch else ())


def add_int8_function(model: ir.Model, kind: Int8Kind) -> None:
    """Give a model the function of a kind and import its domain; does nothing where that is done."""
    if (name := (DOMAIN, kind.op_type, "")) not in model.functions:
        model.functions[name] = int8_matmul_function(kind, model.graph.opset_imports[""])
    model.graph.opset_imports.setdefault(DOMAIN, VERSION)
    model.ir_version = max(model.ir_version, OLDEST_IR)


def int8_call(kind: Int8Kind, inputs: Sequence[ir.Value], shape: tuple[int, int], name: str) -> ir.Node:
    """A node of a kind over its inputs, in the order of `kind.inputs`, for a weight of this shape, K and N.

    Raises:
        ValueError: there are fewer inputs than the kind has, or more.
    """
    if len(inputs) != len(kind.inputs):
        raise ValueError(f"{kind.op_type} has the inputs {', '.join(kind.inputs)}; {len(inputs)} are given")
    return ir.node(kind.op_type, inputs, {"K": shape[0], "N": shape[1]}, domain=DOMAIN, name=name)


def int8_matmul_function(kind: Int8Kind, opset: int) -> ir.Function:
    """A kind of the operator in terms of ONNX's own, for a model of this opset, 15 or later."""
    body = _Body(kind, opset)
    return body.function(kind.op_type, body.result(), opset)


class _Body(Body):
    """The nodes of a function."""

    def __init__(self, kind: Int8Kind, opset: int) -> None:
        super().__init__(kind.inputs)
        self.kind, self.opset = kind, opset
        self.x = self.op("A32", "Cast", self.inputs["A"], to=_FLOAT)
        self.codes = self.weight()

    def _reduced(self, output: str, op_type: str, value: ir.Value) -> ir.Value:
        name, by_row = f"{output}_all", self.opset >= _AXES_ARE_INPUTS
        axes = [self.integers(f"{output}_axes", -1)] if by_row else []
        found = self.op(name, op_type, value, *axes, keepdims=1, **({} if by_row else {"axes": [-1]}))
        # Of an expert without tokens ONNX Runtime 1.31 leaves the rows as long as they were.
        return self.op(output, "Reshape", found, self._by_row(), allowzero=1)

    def _by_row(self) -> ir.Value:
        """Shape of what holds one number for each row of A."""
        known = next((n.outputs[0] for n in self.nodes if n.name == "row_ends"), None)
        return known or self.op("row_ends", "Concat", self.op("A_rows", "Shape", self.x, end=-1), self.one, axis=0)

    def result(self) -> ir.Value:
        op, inputs = self.op, self.inputs
        sums, scale = self._by_token() if self.kind.by_token else self._static()
        scales = op("scales", "Mul", scale, inputs["b_scale"])
        units = op("Y_units", "Mul", op("Y_sums", "Cast", sums, to=_FLOAT), scales)
        total = op("Y_biased", "Add", units, inputs["bias"])
        if self.kind.branch:
            total = op("Y_whole", "Add", total, self._branch())
        return op("Y", "CastLike", total, inputs["A"])

    def _static(self) -> tuple[ir.Value, ir.Value]:
        scale, zero = self.inputs["a_scale"], self.inputs["a_zero_point"]
        codes = self.op("codes", QUANTIZE.op_type, self.x, scale, zero)
        sums = self.op("sums", "MatMulInteger", codes, self.codes, zero)
        return sums, scale

    def _by_token(self) -> tuple[ir.Value, ir.Value]:
        op, none, top = self.op, self.number("none", 0.0), self.number("top", 255.0)
        kept = op("A_kept", "Where", self._kept(), self.x, none) if self.kind.branch else self.x
        high = op("high", "Max", self._reduced("A_max", "ReduceMax", kept), none)
        low = op("low", "Min", self._reduced("A_min", "ReduceMin", kept), none)
        step = op("step", "Sub", op("high_step", "Div", high, top), op("low_step", "Div", low, top))
        scale = op("scale", "Max", step, self.number("smallest", SMALLEST))
        below = op("below", "Clip", op("low_units", "Div", op("low_turned", "Neg", low), scale), none, top)
        zero = op("zero", "Round", below)
        around = op("A_codes", "Add", op("A_round", "Round", op("A_units", "Div", self.x, scale)), zero)
        codes = op("codes", "Cast", op("A_clipped", "Clip", around, none, top), to=int(ir.DataType.UINT8))
        products = op("products", "MatMulInteger", codes, self.codes)
        columns = op("W_sums", "ReduceSum", op("W32", "Cast", self.codes, to=_INT32), self.integers("rows_axis", 0))
        offset = op("offset", "Mul", op("zero32", "Cast", zero, to=_INT32), columns)
        return op("sums", "Sub", products, offset), scale

    def _kept(self) -> ir.Value:
        """Which channels are in the range, bool [K]."""
        first = self.op("first", "Constant", value_int=0)
        size = self.op("K_size", "Shape", self.op("W_column", "Gather", self.codes, first, axis=1))
        ones = self.op("all", "Expand", self.number("keep", 1.0), size)
        count = self.op("C_size", "Shape", self.inputs["channels"])
        out = self.op("out", "Expand", self.number("leave", 0.0), count)
        marks = self.op("marks", "ScatterElements", ones, self.inputs["channels"], out, axis=0)
        return self.op("kept", "Cast", marks, to=int(ir.DataType.BOOL))

    def _branch(self) -> ir.Value:
        outliers = self.op("outliers", "Gather", self.x, self.inputs["channels"], axis=-1)
        rows = self.op("rows32", "Cast", self.inputs["rows"], to=_FLOAT)
        return self.op("branch", "MatMul", outliers, rows)
