"""How a constant comes about that nodes make of others, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import NodeProto

_GROWTH, _SMALL = 4, 1 << 25  # elements: what is computed is not much larger than what it is computed from
_BROADCAST = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Where"})

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Recipe:
    """How a constant comes about; it outlives the nodes that it was read from.

    Attributes:
        tensor: the constant, where no node makes it.
        node: what makes it otherwise, from `sources` by name, in an opset; its output of this index.
    """

    tensor: ir.TensorProtocol | None
    node: NodeProto | None = None
    opset: int = 0
    index: int = 0
    sources: tuple[tuple[str, Recipe], ...] = ()

    @cached_property
    def cost(self) -> int:
        """How many nodes are run for it: one that is read twice is run twice."""
        return 1 + sum(source.cost for _, source in self.sources)

    @cached_property
    def stored(self) -> int:
        """Elements of the tensors that it is made of."""
        return self.tensor.size if self.tensor is not None else sum(source.stored for _, source in self.sources)

    def numbers(self, *, real: bool = True) -> Array:
        """The constant; or an array of its shape, whose floating-point numbers mean nothing and take no memory.

        Raises:
            ValueError: it would be much larger than what it is made of.
            Exception: whatever the evaluator raises where a node is not valid.
        """
        if self.tensor is not None:
            if real or not self.tensor.dtype.is_floating_point():
                return np.asarray(self.tensor.numpy())
            zero = np.zeros((), dtype=self.tensor.dtype.numpy())
            return np.broadcast_to(zero, tuple(self.tensor.shape.numpy()))
        from onnx.reference import ReferenceEvaluator  # slow to import, and few graphs need it

        feeds = {name: source.numbers(real=real) for name, source in self.sources}
        if self.node is not None:
            made = _size_of_result(self.node, [feeds[name] for name in self.node.input if name])
            if made > max(_SMALL, _GROWTH * self.stored):
                raise ValueError(f"'{self.node.name}' makes a constant that is too large to be a weight")
        evaluator: Any = ReferenceEvaluator(self.node, opsets={"": self.opset})
        return np.asarray(evaluator.run(None, feeds)[self.index])


def recipe_of(value: ir.Value, opset: int, known: dict[ir.Value, Recipe] | None = None) -> Recipe:
    """How a value comes from constants, of which it must be made.

    Args:
        value: the constant.
        opset: of the graph.
        known: those of other values; a value that is read twice is asked once.
    """
    known = {} if known is None else known
    if value not in known:
        node = value.producer()
        if node is None:
            known[value] = Recipe(value.const_value)
        else:
            sources = tuple((v.name or "", recipe_of(v, opset, known)) for v in node.inputs if v is not None)
            version, index = node.version or opset, list(node.outputs).index(value)
            known[value] = Recipe(None, ir.to_proto(node), version, index, sources)
    return known[value]


def _size_of_result(node: NodeProto, operands: Sequence[Array]) -> int:
    """Elements of what a node makes, before it does: of an outer product there are many from few."""
    shapes, first = [operand.shape for operand in operands], operands[0]
    if node.op_type == "Expand":
        return prod(np.broadcast_shapes(shapes[0], tuple(operands[1].ravel().tolist())))
    if node.op_type == "MatMul" and min(len(shape) for shape in shapes) > 1:
        return prod(np.broadcast_shapes(*(shape[:-2] for shape in shapes))) * prod((shapes[0][-2], shapes[1][-1]))
    if node.op_type == "Gather":
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        return first.size // max(prod(first.shape[axis : axis + 1 or None]), 1) * operands[1].size
    if node.op_type == "Concat":
        return sum(operand.size for operand in operands)
    return prod(np.broadcast_shapes(*shapes)) if node.op_type in _BROADCAST else first.size
