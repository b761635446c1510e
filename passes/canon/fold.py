"""Weights that the graph cuts out of, or computes from, initializers become initializers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass
from spq_graph.passes.base.replace import add_constant
from spq_graph.passes.base.values import holds_codes, is_standard, weight_of
from spq_graph.passes.canon.constants import Recipe, recipe_of
from spq_graph.terms.errors import GraphError

_PRODUCTS = frozenset({"MatMul", "Gemm", "FusedMatMul"})
# What only moves data.
_MOVES = frozenset(
    {"Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
# What weights are computed by: factors, norms (Salimans and Kingma, arXiv 1602.07868), rounding, terms of low rank.
_COMPUTES = frozenset(
    {
        "Abs",
        "Add",
        "Clip",
        "Div",
        "MatMul",
        "Max",
        "Min",
        "Mul",
        "Neg",
        "Pow",
        "Reciprocal",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Round",
        "Sign",
        "Sqrt",
        "Sub",
        "Where",
    }
)
_OF_ALL = frozenset({"Add", "Concat", "Div", "MatMul", "Max", "Min", "Mul", "Sub", "Where"})
# Operators whose result has as many axes as the one with most of their first so many operands.
_KEEP_AXES = {
    **dict.fromkeys(("Add", "Div", "MatMul", "Mul", "Sub"), 2),
    **dict.fromkeys(
        (
            "Cast",
            "Clip",
            "Dropout",
            "Elu",
            "Erf",
            "Gelu",
            "Identity",
            "LayerNormalization",
            "Neg",
            "Pow",
            "Relu",
            "RMSNormalization",
            "Sigmoid",
            "Softmax",
            "Sqrt",
            "Swish",
            "Tanh",
            "Transpose",
        ),
        1,
    ),
}
_FEW_STEPS = 64  # that any constant may come about in
_MOST_STEPS = 1 << 14  # of all that come about in more, so that time is linear: a quarter of a second for each reading
_LONGEST_CHAIN = 64  # of activations, so that no recursion is too deep


class FoldWeights(CanonicalPass):
    """Give every product whose second operand is made of constants (Split, Reshape, Mul, ...) a weight of its own.

    Nothing is copied: the new initializer reads the old ones when it is asked for its numbers. Operands behind
    Transpose, Cast and Identity alone stay as they are. So does what is no matrix, unless it is one in a stack of one
    that meets activations of as many axes; and what is computed from integers, for that is a quantized weight.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        known: dict[ir.Value, _Origin | None] = {}
        axes: dict[ir.Value, int] = {}
        matrices: dict[ir.Value, _Matrix | None] = {}
        recipes: dict[ir.Value, Recipe] = {}
        left = _MOST_STEPS
        modified = False
        for node in list(graph):
            operand = node.inputs[1] if node.op_type in _PRODUCTS and len(node.inputs) > 1 else None
            if operand is None or not _is_to_fold(operand, known):
                continue
            if operand not in matrices:
                recipe = recipe_of(operand, graph.opset_imports.get("", 1), recipes)
                steps = len(recipe.steps(max(left, _FEW_STEPS)))
                left -= steps if steps > _FEW_STEPS else 0
                matrices[operand] = _matrix_of(operand, recipe) if steps else None
            matrix = matrices[operand]
            if matrix is not None and (matrix.axes == 2 or _axes_of(node.inputs[0], axes) >= matrix.axes):
                node.replace_input_with(1, matrix.initializer(graph))
                modified = True
        for operand in matrices:
            _drop(graph, operand)
        return ir.passes.PassResult(model, modified)


@dataclass(frozen=True, slots=True)
class _Origin:
    """How a value comes from constants.

    Attributes:
        computed: whether any of them computes.
        codes: whether its numbers were integers once.
    """

    computed: bool = False
    codes: bool = False


def _is_to_fold(operand: ir.Value, known: dict[ir.Value, _Origin | None]) -> bool:
    weight = weight_of(operand)
    if weight is not None:
        return len(weight.shape) > 2 and set(weight.shape[:-2]) == {1}
    origin = _origin_of(operand, known)
    return origin is not None and not (origin.computed and origin.codes)


def _origin_of(value: ir.Value, known: dict[ir.Value, _Origin | None]) -> _Origin | None:
    """How a value comes from constants; None where it does not, or by other operators."""
    todo = [value]
    while todo:
        node = todo[-1].producer()
        moved = node is not None and node.op_type in _MOVES | _COMPUTES and is_standard(node) and len(node.inputs) > 0
        behind = [v for v in node.inputs if v is not None] if node is not None and moved else []
        waiting = [v for v in behind if v not in known]
        todo.extend(waiting)
        if not waiting:
            found = todo.pop()
            known[found] = _origin_from(found, node if moved else None, [known[v] for v in behind])
    return known[value]


def _origin_from(value: ir.Value, node: ir.Node | None, behind: Sequence[_Origin | None]) -> _Origin | None:
    """The same, from what the operands of the node come from that moves or computes it; None: it is no such node."""
    if node is None:
        constant = value.producer() is None and value.const_value is not None
        return _Origin(codes=holds_codes(value)) if constant else None
    origins = [origin for origin in behind if origin is not None]
    if len(origins) < len(behind):
        return None
    # Sizes and positions are integers too, and no part of the numbers.
    of_numbers = origins if node.op_type in _OF_ALL else origins[:1]
    computed = node.op_type in _COMPUTES or any(origin.computed for origin in of_numbers)
    return _Origin(computed, any(origin.codes for origin in of_numbers))


def _axes_of(value: ir.Value | None, known: dict[ir.Value, int], left: int = _LONGEST_CHAIN) -> int:
    """How many axes a value has at least, as far as shapes and operators that keep them tell."""
    if value is None:
        return 0
    if value not in known:
        node = value.producer()
        if value.shape is not None:
            known[value] = len(value.shape)
        elif node is not None and left and node.op_type in _KEEP_AXES and is_standard(node):
            counts = [_axes_of(v, known, left - 1) for v in node.inputs[: _KEEP_AXES[node.op_type]]]
            vector = node.op_type == "MatMul" and 1 in counts  # which takes an axis away
            known[value] = 0 if vector else max(counts, default=0)
        else:
            known[value] = 0
    return known[value]


@dataclass(slots=True)
class _Matrix:
    """A constant operand that is a matrix.

    Attributes:
        name: of the operand.
        recipe: of its numbers.
        dtype: element type.
        shape: [K, N].
        axes: of the operand; more than two where it is a stack of one.
        made: the initializer, once a product has asked for it.
    """

    name: str
    recipe: Recipe
    dtype: ir.DataType
    shape: tuple[int, int]
    axes: int
    made: ir.Value | None = None

    def initializer(self, graph: ir.Graph) -> ir.Value:
        """The matrix as a weight of the graph, one for all products that read it."""
        if self.made is None:
            computed = partial(_computed, self.name, self.recipe, self.dtype, self.shape)
            tensor = ir.LazyTensor(computed, dtype=self.dtype, shape=ir.Shape(self.shape))
            self.made = add_constant(graph, f"{self.name}.folded", tensor)
        return self.made


def _computed(name: str, recipe: Recipe, dtype: ir.DataType, shape: tuple[int, int]) -> ir.TensorProtocol:
    """The numbers of a matrix, [K, N].

    Raises:
        GraphError: nodes that make it do not fit the constants that they read, as of an index that is out of range.
    """
    try:
        return ir.Tensor(recipe.numbers().reshape(shape), dtype=dtype)
    except MemoryError:
        raise
    except Exception as error:  # whatever the evaluator and numpy raise
        raise GraphError(
            f"a weight cannot be computed from the constants of the graph: {error}",
            where=f"value '{name}'",
            remedy="export the model again with constants folded, from weights that it runs with",
        ) from error


def _matrix_of(value: ir.Value, recipe: Recipe) -> _Matrix | None:
    """The matrix that a constant operand is, alone or in a stack of one; None where it is none."""
    try:
        with np.errstate(all="ignore"):
            stand_in = recipe.numbers(real=False)
    except Exception:  # whatever the evaluator and numpy raise where a node cannot be computed: then nothing is folded
        return None
    if stand_in.ndim < 2 or set(stand_in.shape[:-2]) - {1}:  # no linear layer
        return None
    rows, columns = stand_in.shape[-2:]
    return _Matrix(value.name or "", recipe, ir.DataType.from_numpy(stand_in.dtype), (rows, columns), stand_in.ndim)


def _drop(graph: ir.Graph, value: ir.Value) -> None:
    """Take away nodes and initializers that nothing reads any more."""
    todo = [value]
    while todo:
        unread = todo.pop()
        node = unread.producer()
        if node is None:
            name = unread.name or ""
            if not unread.uses() and not unread.is_graph_output() and name in graph.initializers:
                graph.initializers.pop(name)
        elif node.graph is not None and not any(v.uses() or v.is_graph_output() for v in node.outputs):
            todo += [v for v in node.inputs if v is not None]
            graph.remove(node, safe=True)
