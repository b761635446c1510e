"""How a constant comes about that nodes make of others, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import NodeProto

_GROWTH, _SMALL = 4, 1 << 25  # elements: what is computed is not much larger than what it is computed from
_BROADCAST = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Where"})

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
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

    def steps(self, most: int | None = None) -> list[Recipe]:
        """Every constant that it is made of, each once and behind its sources; nothing where they are more."""
        order: dict[Recipe, None] = {}
        todo = [self]
        while todo:
            if len(order) == most:
                return []
            waiting = [source for _, source in todo[-1].sources if source not in order]
            todo.extend(reversed(waiting))  # in their order: what a sum begins with, before what is added to it
            if not waiting:
                order.setdefault(todo.pop())
        return list(order)

    def numbers(self, *, real: bool = True) -> Array:
        """The constant; or an array of its shape, whose floating-point numbers mean nothing and take no memory.

        Every step is run once, and its result is let go when nothing that is still to come reads it.

        Raises:
            ValueError: it, or what is held on the way to it, would be much larger than what it is made of.
            Exception: whatever the evaluator raises where a node is not valid.
        """
        steps = self.steps()
        last = {source: place for place, step in enumerate(steps) for _, source in step.sources}
        most = max(_SMALL, _GROWTH * sum(step.tensor.size for step in steps if step.tensor is not None))
        made: dict[Recipe, Array] = {}
        held = 0
        for place, step in enumerate(steps):
            feeds = {name: made[source] for name, source in step.sources}
            if step.node is not None:
                growth = _size_of_result(step.node, [feeds[name] for name in step.node.input if name])
                if held + growth > most:
                    raise ValueError(f"'{step.node.name}' makes a constant that is too large to be a weight")
            made[step] = step._run(feeds) if real else _stand_in(step._run(feeds, real=False))
            held += made[step].size if step.node is not None else 0
            for source in {source for _, source in step.sources if last[source] == place}:
                size = made.pop(source).size
                held -= size if source.node is not None else 0
        return made[self]

    def _run(self, feeds: dict[str, Array], *, real: bool = True) -> Array:
        """What one step makes of its sources."""
        if self.tensor is not None:
            if real or not self.tensor.dtype.is_floating_point():
                return np.asarray(self.tensor.numpy())
            return np.broadcast_to(np.zeros((), dtype=self.tensor.dtype.numpy()), tuple(self.tensor.shape.numpy()))
        from onnx.reference import ReferenceEvaluator  # slow to import, and few graphs need it

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
    todo = [value]
    while todo:
        node = todo[-1].producer()
        sources = [v for v in node.inputs if v is not None] if node is not None else []
        waiting = [v for v in sources if v not in known]
        todo.extend(waiting)
        if not waiting:
            made = todo.pop()
            if made not in known:
                known[made] = _recipe(made, node, opset, [(v.name or "", known[v]) for v in sources])
    return known[value]


def _recipe(value: ir.Value, node: ir.Node | None, opset: int, sources: Sequence[tuple[str, Recipe]]) -> Recipe:
    if node is None:
        return Recipe(value.const_value)
    index = list(node.outputs).index(value)
    return Recipe(None, ir.to_proto(node), node.version or opset, index, tuple(sources))


def _stand_in(array: Array) -> Array:
    """An array of this shape that takes no memory, where its numbers are floating-point ones."""
    return np.broadcast_to(np.zeros((), array.dtype), array.shape) if array.dtype.kind == "f" else array


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
