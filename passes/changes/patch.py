"""Single weights of products at zero, in a copy of a graph: the tensor of the source stays as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.conditions import NamedPass
from spq_graph.passes.base.operand import Operand, operand_of
from spq_graph.passes.base.replace import add_constant
from spq_graph.passes.base.values import FLOATS
from spq_graph.terms.errors import GraphError


class ZeroWeights(NamedPass):
    """Give products a weight of their own in which some elements are zero.

    What else reads the weight, a product that shares it or a head that is tied to it, goes on with the old one. The new
    one is worked out when it is read, one product at a time.

    Args:
        zeros: by name of a node, (row, column) of each element, counted in a weight [out, in].

    Calling it raises GraphError where a node has no weight in floating point.
    """

    def __init__(self, zeros: Mapping[str, Collection[tuple[int, int]]]) -> None:
        super().__init__()
        self.zeros = {name: tuple(some) for name, some in zeros.items() if some}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = {node.name: node for node in model.graph if node.name in self.zeros}
        for name, some in self.zeros.items():
            node = nodes.get(name)
            operand = operand_of(node) if node is not None else None
            if node is None or operand is None or operand.dtype not in FLOATS:
                raise GraphError(
                    "no weight in floating point is there to be zeroed",
                    where=name,
                    remedy="look for super weights in the floating-point model",
                )
            tensor = _without(operand, some)
            node.replace_input_with(1, add_constant(model.graph, f"{name}.without", tensor))
        return ir.passes.PassResult(model, modified=bool(self.zeros))


def _without(operand: Operand, zeros: Collection[tuple[int, int]]) -> ir.LazyTensor:
    """The weight as the product reads it, [N, K] where it transposes it and [K, N] otherwise, with zeros."""
    made = partial(_made, operand, zeros)
    return ir.LazyTensor(made, dtype=operand.dtype, shape=ir.Shape(operand.weight.shape))


def _made(operand: Operand, zeros: Collection[tuple[int, int]]) -> ir.TensorProtocol:
    array = np.array(operand.weight.numpy())
    for row, column in zeros:
        array[(row, column) if operand.flipped else (column, row)] = 0.0
    return ir.Tensor(array.astype(operand.dtype.numpy(), copy=False), dtype=operand.dtype)
