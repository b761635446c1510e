"""The precision that a product has in a file, whoever wrote it."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.base.marks import FP8, is_fp8_matmul, is_int8_gather, is_int8_matmul
from spq_graph.passes.base.values import attribute_of, codes_looked_up, weight_of
from spq_graph.passes.forms.fp8_function import precision_of_call
from spq_graph.passes.forms.nbits import ACCURACY_LEVELS
from spq_graph.passes.forms.rules import HALF_PRECISIONS, producer_of
from spq_graph.terms.form import Form
from spq_graph.terms.kernels import TOKEN_KERNEL
from spq_graph.terms.precision import Precision


def precision_of(node: ir.Node) -> Precision:
    """The precision that a product has in the file: INT8 for any integer container, 8 bits for any by block."""
    if (said := _said_by_operator(node)) is not None:
        return said
    if len(node.inputs) < 2:  # no product at all; readers of foreign files ask of every node
        return Precision.FP32
    activation, weight = (producer_of(value, "DequantizeLinear") for value in node.inputs[:2])
    if weight is not None and (codes := weight_of(weight.inputs[0])) is not None:
        if codes.tensor.dtype is FP8:
            return Precision.W8FP8A16 if activation is None else Precision.FP8_E4M3
        return Precision.W8A16 if activation is None else Precision.INT8
    held = weight_of(node.inputs[1])
    return HALF_PRECISIONS.get(held.tensor.dtype, Precision.FP32) if held is not None else Precision.FP32


def level_of(node: ir.Node) -> int:
    """The accuracy_level of a MatMulNBits."""
    return int(attribute_of(node, "accuracy_level", 0))


def _said_by_operator(node: ir.Node) -> Precision | None:
    """The precision that a node states by what it is, whatever it reads."""
    if is_fp8_matmul(node):
        return precision_of_call(node)
    if is_int8_matmul(node):
        return Precision.W8A8_TOKEN if node.op_type.startswith(TOKEN_KERNEL) else Precision.INT8
    if codes_looked_up(node) or is_int8_gather(node):
        return Precision.W8A16
    if node.op_type == "MatMulNBits":
        return Precision.W8A8_BLOCK if level_of(node) == ACCURACY_LEVELS[Form.NBITS] else Precision.W8A16
    return Precision.INT8 if node.op_type == "MatMulInteger" else None
