"""Fold: weights that the graph cuts out of, or puts together from, initializers become initializers of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import NodeProto

from spq_graph.passes.values import is_standard, weight_of

_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul"})
# What only moves data. Gather is left out: experts are gathered from their stack.
_MOVES = frozenset({
    "Cast", "Concat", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
_LONGEST_CHAIN = 64  # so that time is linear, and no recursion too deep

Array = npt.NDArray[Any]


class FoldWeights(ir.passes.InPlacePass):
    """Give every product whose second operand is cut from constants (Split, Slice, Reshape, ...) a weight of its own.

    Nothing is copied: the new initializer reads the old one when it is asked for its numbers. Operands behind
    Transpose, Cast and Identity alone stay as they are, and so does what is no matrix.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        known: dict[ir.Value, int | None] = {}
        folded: dict[ir.Value, ir.Value | None] = {}
        for node in list(graph):
            operand = node.inputs[1] if node.op_type in _PRODUCTS and len(node.inputs) > 1 else None
            if operand is None or weight_of(operand) is not None or _moves_behind(operand, known) is None:
                continue
            if operand not in folded:
                folded[operand] = _as_initializer(graph, operand)
            if (made := folded[operand]) is not None:
                node.replace_input_with(1, made)
        for operand in folded:
            _drop(graph, operand)
        return ir.passes.PassResult(model, modified=any(made is not None for made in folded.values()))


def _moves_behind(value: ir.Value, known: dict[ir.Value, int | None], left: int = _LONGEST_CHAIN) -> int | None:
    """How many moves of data in a row lead from constants to a value; None where anything else does, or too many."""
    if value in known:
        return known[value]
    node = value.producer()
    found: int | None = None
    if node is None:
        found = 0 if value.const_value is not None else None
    elif left and node.op_type in _MOVES and is_standard(node) and node.inputs:
        behind = [_moves_behind(v, known, left - 1) for v in node.inputs if v is not None]
        counts = [count for count in behind if count is not None]
        found = max(counts) + 1 if len(counts) == len(behind) and max(counts) < _LONGEST_CHAIN else None
    known[value] = found
    return found


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How a constant comes about; it outlives the nodes that it was read from.

    Attributes:
        tensor: the constant, where no node makes it.
        node: what makes it otherwise, from `sources` by name, in an opset; its output of this index.
    """

    tensor: ir.TensorProtocol | None
    node: NodeProto | None = None
    opset: int = 0
    index: int = 0
    sources: tuple[tuple[str, _Recipe], ...] = ()

    def numbers(self, *, real: bool = True) -> Array:
        """The constant; or an array of its shape, whose floating-point numbers mean nothing and take no memory."""
        if self.tensor is not None:
            if real or not self.tensor.dtype.is_floating_point():
                return np.asarray(self.tensor.numpy())
            zero = np.zeros((), dtype=self.tensor.dtype.numpy())
            return np.broadcast_to(zero, tuple(self.tensor.shape.numpy()))
        from onnx.reference import ReferenceEvaluator  # slow to import, and few graphs need it

        feeds = {name: source.numbers(real=real) for name, source in self.sources}
        evaluator: Any = ReferenceEvaluator(self.node, opsets={"": self.opset})
        return np.asarray(evaluator.run(None, feeds)[self.index])


def _recipe(value: ir.Value, opset: int) -> _Recipe:
    node = value.producer()
    if node is None:
        return _Recipe(value.const_value)
    sources = tuple((v.name or "", _recipe(v, opset)) for v in node.inputs if v is not None)
    return _Recipe(None, ir.to_proto(node), node.version or opset, list(node.outputs).index(value), sources)


def _as_initializer(graph: ir.Graph, value: ir.Value) -> ir.Value | None:
    recipe = _recipe(value, graph.opset_imports.get("", 1))
    stand_in = recipe.numbers(real=False)
    if stand_in.ndim != 2:  # no linear layer
        return None
    dtype, shape = ir.DataType.from_numpy(stand_in.dtype), ir.Shape(stand_in.shape)
    name = f"{value.name}.folded"
    while name in graph.initializers:
        name += "_"
    tensor = ir.LazyTensor(lambda: ir.tensor(recipe.numbers(), dtype=dtype), dtype=dtype, shape=shape, name=name)
    made = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)
    graph.initializers.add(made)
    return made


def _drop(graph: ir.Graph, value: ir.Value) -> None:
    """Take away nodes and initializers that nothing reads any more."""
    node = value.producer()
    if node is None:
        if not value.uses() and not value.is_graph_output() and (name := value.name or "") in graph.initializers:
            graph.initializers.pop(name)
    elif node.graph is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
        inputs = [v for v in node.inputs if v is not None]
        graph.remove(node, safe=True)
        for before in inputs:
            _drop(graph, before)
