"""Keys and values of tokens that every sequence follows, in front of a decoder's cache: no client sees them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from spq_graph.documents.arrays import Float32
from spq_graph.documents.changes import Prefix
from spq_graph.passes.base.conditions import CanonicalPass
from spq_graph.passes.base.marks import PREFIX as OURS
from spq_graph.passes.base.replace import add_constant
from spq_graph.passes.base.values import Size, sizes_of
from spq_graph.passes.find.caches import Caches, find_caches
from spq_graph.terms.errors import GraphError

_NAMED = f"{OURS}prefix"
_INNER = f"{_NAMED}.within"  # what goes on behind a cache that comes in, and in front of one that goes out
_LONGER = " + prefix_length"  # of a dimension in which the prefix counts
_TO_THE_END = int(np.iinfo(np.int64).max)
_ANEW = "make the plan again with `spq-graph quantize`"


class PrependPrefix(CanonicalPass):
    """Let every sequence follow a prefix whose keys and values stand in the graph.

    What comes in as cache is joined to them along its length, and what goes out is cut behind them; a mask gets as many
    columns of ones in front, and positions count on from them. In between the graph computes what it would if a client
    had fed the prefix first, whatever its attention looks like. Inputs, outputs and their lengths are what they were.

    Args:
        prefix: what to put in; None for nothing.

    Calling it raises GraphError where the graph has no cache of a known form, or another one than the prefix is for.
    """

    def __init__(self, prefix: Prefix | None) -> None:
        super().__init__()
        self.prefix = prefix

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.prefix is None:
            return ir.passes.PassResult(model, modified=False)
        if any((node.name or "").startswith(f"{_NAMED}.") for node in model.graph):
            raise GraphError(
                "a prefix stands in this graph already", where=_NAMED, remedy="start from the model without one"
            )
        caches, held = find_caches(model.graph), self.prefix.arrays.read()
        _refuse_misfit(caches, held)
        # ONNX Runtime takes dimensions of one name for one number, and shares memory accordingly.
        counted = [re.compile(rf"(?<!\w){re.escape(name)}(?!\w)") for name in caches.lengths]
        _rename_sizes(model.graph, lambda name: name + _LONGER if any(one.search(name) for one in counted) else name)
        _Writer(model.graph, len(self.prefix.tokens)).write(caches, held)
        return ir.passes.PassResult(model, modified=True)


class RemovePrefix(CanonicalPass):
    """Take a prefix out of a graph again, which then is to the byte what it was."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        ours = [node for node in graph if (node.name or "").startswith(f"{_NAMED}.")]
        for node in ours:
            made = node.outputs[0]
            if node.op_type == "Slice":
                inner = node.inputs[0]
                assert inner is not None
                made.replace_all_uses_with(inner, replace_graph_outputs=True)
                made.name, inner.name = inner.name, made.name
                inner.shape = made.shape
            elif node.op_type in ("Add", "Concat"):
                outer = next((v for v in node.inputs if v is not None and v.is_graph_input()), None)
                if outer is not None:
                    made.replace_all_uses_with(outer)
        graph.remove(ours, safe=True)
        for name in [name for name in graph.initializers if name.startswith(f"{_NAMED}.")]:
            graph.initializers.pop(name)
        _rename_sizes(graph, lambda name: name.removesuffix(_LONGER))
        return ir.passes.PassResult(model, modified=bool(ours))


def _refuse_misfit(caches: Caches, held: Mapping[str, Float32]) -> None:
    """Refuse keys and values of another model.

    Raises:
        GraphError: the prefix has none for a cache, has some for one that is not there, or of other sizes.
    """
    there = {past.name or "": past for past, _ in caches.pairs}
    for name in (*there, *held):
        sizes, array = sizes_of(there.get(name)), held.get(name)
        if array is None or not sizes or (sizes[1], sizes[3]) != (array.shape[1], array.shape[3]):
            says = "nothing" if array is None else f"[1, {array.shape[1]}, length, {array.shape[3]}]"
            has = f"[batch, {sizes[1]}, length, {sizes[3]}]" if sizes else "no such cache"
            raise GraphError(f"the prefix has {says} for '{name}', and the graph {has}", where=name, remedy=_ANEW)


class _Writer:
    """Puts a prefix into a graph.

    Args:
        graph: what to write into.
        length: tokens of the prefix.
    """

    def __init__(self, graph: ir.Graph, length: int) -> None:
        self._graph = graph
        self._length = length
        self._first = graph[0]
        self._order = {node: place for place, node in enumerate(graph)}

    def write(self, caches: Caches, held: Mapping[str, Float32]) -> None:
        """Join what comes in to the prefix, and cut what goes out behind it."""
        batch = self._batch(caches.ids)
        for mask in caches.masks:
            self._join(mask, np.ones((1, self._length), np.float32), self._spread(batch, 1, "mask"), axis=1)
        for positions in caches.positions:
            self._shift(positions)
        spread = self._spread(batch, 3, "cache")
        for past, present in caches.pairs:
            self._join(past, held[past.name or ""], spread, axis=2)
            self._cut(present)

    def _batch(self, ids: ir.Value) -> ir.Value:
        """How many sequences there are, int64 [1]."""
        shape = self._add("Shape", [ids], "shape", ir.DataType.INT64, [2])
        return self._add("Gather", [shape, self._constant("rows", [0])], "batch", ir.DataType.INT64, [1])

    def _spread(self, batch: ir.Value, others: int, name: str) -> ir.Value:
        """The shape that gives every sequence what a constant holds for one, int64 [1 + others]."""
        ones = self._constant(f"{name}.ones", [1] * others)
        return self._add("Concat", [batch, ones], f"{name}.spread", ir.DataType.INT64, [1 + others], axis=0)

    def _join(self, value: ir.Value, front: Float32, spread: ir.Value, axis: int) -> None:
        """Let whatever reads an input read it behind what stands in front of it."""
        uses, dtype, sizes = list(value.uses()), value.dtype, [_name(size) for size in sizes_of(value)]
        assert dtype is not None
        # In front of who reads it first: all caches joined at once would lie in memory twice.
        at = min(
            (use.node for use in uses if use.node in self._order), key=self._order.__getitem__, default=self._first
        )
        constant = add_constant(self._graph, f"{_NAMED}.{value.name}.front", ir.Tensor(front.astype(dtype.numpy())))
        rows = self._add("Expand", [constant, spread], f"{value.name}.rows", dtype, [sizes[0], *front.shape[1:]], at)
        sizes[axis] = f"{sizes[axis]}{_LONGER}"
        joined = self._add("Concat", [rows, value], f"{value.name}", dtype, sizes, at, axis=axis)
        for use in uses:
            use.node.replace_input_with(use.idx, joined)

    def _shift(self, positions: ir.Value) -> None:
        """Let whatever reads positions count on from the prefix."""
        uses, dtype, name = list(positions.uses()), positions.dtype, f"{positions.name}"
        assert dtype is not None
        length = ir.Tensor(np.asarray(self._length, dtype.numpy()))
        constant = add_constant(self._graph, f"{_NAMED}.{name}.length", length)
        sizes = [_name(size) for size in sizes_of(positions)]
        later = self._add("Add", [positions, constant], name, dtype, sizes)
        for use in uses:
            use.node.replace_input_with(use.idx, later)

    def _cut(self, present: ir.Value) -> None:
        """Give out a cache without the prefix, under the name that it had."""
        name, maker, sizes = present.name or "", present.producer(), [_name(size) for size in sizes_of(present)]
        assert maker is not None
        bounds = {"start": self._length, "end": _TO_THE_END, "axis": 2}
        cut = ir.node(
            "Slice",
            [present, *(self._constant(f"cut.{bound}", [number]) for bound, number in bounds.items())],
            name=f"{_NAMED}.{name}",
        )
        given = cut.outputs[0]
        given.type, given.shape = present.type, present.shape
        self._graph.insert_after(maker, cut)
        outputs = self._graph.outputs
        outputs[next(place for place, output in enumerate(outputs) if output is present)] = given
        present.name, given.name = f"{_INNER}.{name}", name
        present.shape = ir.Shape([*sizes[:2], f"{sizes[2]}{_LONGER}", sizes[3]])

    def _constant(self, name: str, numbers: Sequence[int]) -> ir.Value:
        """Whole numbers, which several nodes may share."""
        there = self._graph.initializers.get(f"{_NAMED}.{name}")
        return there or add_constant(self._graph, f"{_NAMED}.{name}", ir.Tensor(np.asarray(numbers, np.int64)))

    def _add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        name: str,
        dtype: ir.DataType,
        sizes: Sequence[int | str | None],
        at: ir.Node | None = None,
        **attributes: int,
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{_NAMED}.{name}")
        made = node.outputs[0]
        made.name, made.type, made.shape = f"{_INNER}.{name}", ir.TensorType(dtype), ir.Shape(sizes)
        self._graph.insert_before(at or self._first, node)
        return made


def _name(size: Size) -> int | str | None:
    return size if isinstance(size, int) else size.value


def _rename_sizes(graph: ir.Graph, renamed: Callable[[str], str]) -> None:
    """Give dimensions within a graph other names; those of its outputs are a client's."""
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.shape is None or value.is_graph_output():
                continue
            sizes = [_name(size) for size in value.shape]
            names = [renamed(size) if isinstance(size, str) else size for size in sizes]
            if names != sizes:
                value.shape = ir.Shape(names)
