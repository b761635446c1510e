"""The functions that stand for our operators, by the operator's name."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from spq_graph.passes.forms.fp8_function import fp8_matmul_function
from spq_graph.passes.forms.gather_function import gather_name, int8_gather_function
from spq_graph.passes.forms.int8_function import OLDEST_OPSET, Int8Kind, int8_matmul_function
from spq_graph.terms.kernels import FP8_KERNEL


def own_functions(opset: int) -> Mapping[str, ir.Function]:
    """Every function as we write it into a model of this opset; those that it can have."""
    found = {FP8_KERNEL: fp8_matmul_function(opset)}
    if opset < OLDEST_OPSET:
        return found
    for branch in (False, True):
        found[gather_name(branch=branch)] = int8_gather_function(opset, branch=branch)
        for kind in (Int8Kind(by_token, branch) for by_token in (False, True)):
            found[kind.op_type] = int8_matmul_function(kind, opset)
    return found
