"""Segments: cut a graph into consecutive pieces whose weights each fit a limit, so that one at a time can run.

Where a piece ends, what later pieces need of it is handed over. Cuts fall where that is least, which in a decoder is
between two layers. What costs next to nothing is never handed over but computed again where it is needed: whatever
follows from constants alone, or from the graph's inputs and small constants (masks, positions, rotary angles), and the
Q/DQ pairs in front of a product, which the runtime fuses only where it sees them with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import onnx_ir as ir

from spq_graph.passes.values import is_standard
from spq_graph.passes.wide import PartWide
from spq_graph.segment import Handed, Segment, Segmented, Spec, Weight

# What a session on the CPU widens to float32, or holds as it is; a table that is only gathered from stays in its file.
_WIDENED = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
SMALLEST_LIMIT, LARGEST_LIMIT = 64 << 20, 256 << 20
# What a segment may hold of constants for the sake of what it computes again.
_LIGHT_SHARE = 64
_EMBEDDED = 1024
_FOLLOWS_ITS_PRODUCT = frozenset({"QuantizeLinear", "DequantizeLinear"})
# A cut early in a segment must save more than a value to be taken: segments should be few.
_EARLIEST = 0.5


def split(model: ir.Model, where: Path, limit: int | None = None) -> Segmented:
    """Cut a model into segments whose weights take at most `limit` bytes, or that hold a single node.

    The model must have been through `Canonicalize`. Products that alone exceed the limit are parted in it; beyond that
    it is not changed, and must stay as it is while segments are used. Time is linear in the number of nodes.

    Args:
        model: the model.
        where: the file that it was read from; weights in files are read from that file's folder.
        limit: bytes of weights in a session; None for those of the largest tensor in float32, within 64 and 256 MiB.
    """
    limit = limit or _limit_for(model.graph)
    PartWide(limit)(model)
    graph = model.graph
    cutter = _Cutter(graph, where.resolve(), limit // _LIGHT_SHARE)
    pieces = cutter.pieces(limit)
    return Segmented(where, *signature(model), [_segment(model, cutter, piece) for piece in pieces])


def signature(model: ir.Model) -> tuple[list[Spec], list[Spec]]:
    """Inputs and outputs of a graph, as a session over it would describe them."""
    return [_spec(value) for value in model.graph.inputs], [_spec(value) for value in model.graph.outputs]


def _limit_for(graph: ir.Graph) -> int:
    tensors = (value.const_value for value in graph.initializers.values())
    largest = max((_widened(tensor) for tensor in tensors if tensor is not None), default=0)
    return min(max(largest, SMALLEST_LIMIT), LARGEST_LIMIT)


def _spec(value: ir.Value) -> Spec:
    kind = value.dtype.name.lower() if value.dtype is not None else "float"
    dims = [d if isinstance(d, int) else d.value for d in value.shape] if value.shape is not None else []
    return Spec(value.name or "", f"tensor({kind})", dims)


@dataclass(slots=True)
class _Piece:
    """Nodes of a segment in order, and the values at its ends."""

    nodes: list[ir.Node]
    reads: list[ir.Value]
    gives: list[ir.Value]
    bytes: int


@dataclass(slots=True)
class _Cutter:
    """What is known of a graph's nodes while it is cut.

    Attributes:
        where: the model's file.
        light_bytes: the most constants that what is computed again may follow from.
        needed: nodes that an output depends on, in order.
        reads: what each of them reads, subgraphs included.
        paid: those that no segment computes again.
    """

    graph: ir.Graph
    where: Path
    light_bytes: int
    needed: list[ir.Node] = field(init=False)
    reads: dict[ir.Node, list[ir.Value]] = field(init=False)
    paid: list[ir.Node] = field(init=False)
    _constant: dict[ir.Node, int] = field(default_factory=dict)
    _light: dict[ir.Node, int] = field(default_factory=dict)
    _sources: dict[ir.Value, tuple[ir.Value, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reads = {node: list(dict.fromkeys(_read_by(node, self.graph))) for node in self.graph}
        self.needed = _needed(self.graph, self.reads)
        for node in self.needed:
            if self.reads[node] and all(self._is_constant(value) for value in self.reads[node]):
                self._constant[node] = int(sum(map(self._bytes_behind, self.reads[node])))
            elif (behind := sum(map(self._bytes_behind, self.reads[node]))) <= self.light_bytes:
                self._light[node] = int(behind)
        self.paid = [node for node in self.needed if not self.is_free(node)]

    def is_free(self, node: ir.Node) -> bool:
        """Whether a segment computes a node again where it needs it."""
        return node in self._constant or node in self._light or _follows_its_product(node)

    def _is_constant(self, value: ir.Value) -> bool:
        producer = value.producer()
        return producer in self._constant if producer is not None else value.const_value is not None

    def _bytes_behind(self, value: ir.Value) -> float:
        """Bytes of the constants that a value follows from; infinity for one that is not computed again."""
        producer = value.producer()
        if producer is not None:
            return self._constant.get(producer, self._light.get(producer, math.inf))
        return value.const_value.nbytes if value.const_value is not None else 0

    def sources_of(self, value: ir.Value) -> tuple[ir.Value, ...]:
        """The values of paid nodes that a value follows from by free nodes alone; itself where a paid one made it."""
        known = self._sources.get(value)
        if known is None:
            producer = value.producer()
            if producer is None or producer in self._constant or producer in self._light:
                known = ()
            elif not self.is_free(producer):
                known = (value,)
            else:
                known = tuple(dict.fromkeys(s for v in self.reads[producer] for s in self.sources_of(v)))
            self._sources[value] = known
        return known

    def pieces(self, limit: int) -> list[_Piece]:
        """Cut, and complete every piece with the free nodes that it needs."""
        bounds = [*_bounds(self._held(), self._crossing(), limit), len(self.paid)]
        index = {node: i for i, node in enumerate(self.paid)}
        outputs = list(self.graph.outputs)
        pieces: list[_Piece] = []
        order = {node: i for i, node in enumerate(self.needed)}
        last = self._last_use()
        for start, end in zip([0, *bounds[:-1]], bounds, strict=True):
            own = self.paid[start:end]
            free_outputs = [v for v in outputs if not self._made_by_paid(v)] if end == len(self.paid) else []
            wanted = [v for node in own for v in self.reads[node]] + free_outputs
            nodes = {*own, *self._free_behind(wanted)}
            made = {value for node in own for value in node.outputs}
            given = [v for node in own for v in node.outputs if last.get(v, -1) >= end or v.is_graph_output()]
            needs = dict.fromkeys(s for v in wanted for s in self.sources_of(v) if s not in made)
            reads = [v for v in needs if index[_producer(v)] < start]
            held = sum(self._bytes_of(node) for node in nodes)
            gives = list(dict.fromkeys([*given, *free_outputs]))
            pieces.append(_Piece(sorted(nodes, key=order.__getitem__), reads, gives, held))
        return pieces

    def _made_by_paid(self, value: ir.Value) -> bool:
        producer = value.producer()
        return producer is not None and not self.is_free(producer)

    def _free_behind(self, values: Iterable[ir.Value]) -> set[ir.Node]:
        return self._behind(values, self.is_free)

    def _behind(self, values: Iterable[ir.Value], kind: Callable[[ir.Node], bool]) -> set[ir.Node]:
        """The nodes of a kind that values follow from by way of nodes of that kind alone."""
        found: set[ir.Node] = set()
        pending = list(values)
        while pending:
            producer = pending.pop().producer()
            if producer is not None and producer not in found and kind(producer):
                found.add(producer)
                pending += self.reads[producer]
        return found

    def _held(self) -> list[int]:
        """Bytes of weights by paid node, with those of the constants behind it."""
        return [
            self._bytes_of(node) + sum(map(self._bytes_of, self._behind(self.reads[node], self._constant.__contains__)))
            for node in self.paid
        ]

    def _bytes_of(self, node: ir.Node) -> int:
        if node.op_type in ("Gather", "GatherND") and is_standard(node):
            return 0
        tensors = [v.const_value for v in self.reads[node] if v.producer() is None and v.const_value is not None]
        return sum(map(_widened, tensors))

    def _last_use(self) -> dict[ir.Value, int]:
        """The last paid node, by its place, that needs a value of an earlier one."""
        last: dict[ir.Value, int] = {}
        for place, node in enumerate(self.paid):
            for value in self.reads[node]:
                for source in self.sources_of(value):
                    last[source] = place
        for value in self.graph.outputs:
            if not self._made_by_paid(value):
                last |= dict.fromkeys(self.sources_of(value), len(self.paid))
        return last

    def _crossing(self) -> list[int]:
        """How many values would be handed over at a cut in front of each paid node."""
        steps = [0] * (len(self.paid) + 2)
        place = {node: i for i, node in enumerate(self.paid)}
        for value, end in self._last_use().items():
            steps[place[_producer(value)] + 1] += 1
            steps[min(end, len(self.paid)) + 1] -= 1
        return list(accumulate(steps))[: len(self.paid)]


def _widened(tensor: ir.TensorProtocol) -> int:
    """Bytes that a tensor takes in a session on the CPU."""
    return 4 * tensor.size if tensor.dtype in _WIDENED else tensor.nbytes


def _bounds(held: list[int], crossing: list[int], limit: int) -> Iterator[int]:
    """Where to cut: as late as the limit lets, at the fewest values handed over in the later part of the segment."""
    start, total, place = 0, 0, 0
    while place < len(held):
        total += held[place]
        if total > limit and place > start:
            sums = list(accumulate(held[start : place + 1]))
            late = [i for i in range(start + 1, place + 1) if sums[i - start - 1] >= _EARLIEST * sums[-2]]
            start = min(late or [place], key=lambda i: (crossing[i], -i))
            yield start
            total, place = 0, start
            continue
        place += 1


def _producer(value: ir.Value) -> ir.Node:
    producer = value.producer()
    assert producer is not None
    return producer


def _follows_its_product(node: ir.Node) -> bool:
    return node.op_type in _FOLLOWS_ITS_PRODUCT and is_standard(node)


def _read_by(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Value]:
    """What a node reads of the main graph, its subgraphs included."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            inner = [attribute.as_graph()]
        elif attribute.type is ir.AttributeType.GRAPHS:
            inner = list(attribute.as_graphs())
        else:
            continue
        for value in (v for body in inner for n in body.all_nodes() for v in n.inputs if v is not None):
            if value.graph is graph:
                yield value
        yield from (v for body in inner for v in body.outputs if v.graph is graph)


def _needed(graph: ir.Graph, reads: Mapping[ir.Node, list[ir.Value]]) -> list[ir.Node]:
    """The nodes that an output depends on, in the graph's order."""
    found: set[ir.Node] = set()
    pending = list(graph.outputs)
    while pending:
        producer = pending.pop().producer()
        if producer is not None and producer not in found:
            found.add(producer)
            pending += reads[producer]
    return [node for node in graph if node in found]


def _segment(model: ir.Model, cutter: _Cutter, piece: _Piece) -> Segment:
    graph = model.graph
    used = list(dict.fromkeys(v for node in piece.nodes for v in cutter.reads[node]))
    initializers = [v for v in used if v.producer() is None and v.const_value is not None]
    inputs = [v for v in used if v.is_graph_input() and v.const_value is None]
    lazy = {v.name or "": v.const_value for v in initializers if _is_held(v, cutter.where)}
    return Segment(
        reads=tuple(v.name or "" for v in piece.reads),
        gives=tuple(v.name or "" for v in piece.gives),
        size=piece.bytes,
        proto=partial(_serialized, model, graph, piece, inputs, initializers, frozenset(lazy)),
        weights={name: partial(_weight, tensor) for name, tensor in lazy.items() if tensor is not None},
    )


def _is_held(value: ir.Value, where: Path) -> bool:
    """Whether a weight is handed to the session as an array: it is in no file that the session could read itself.

    In the model's own file weights lie wherever they happen to, and kernels want their numbers aligned.
    """
    tensor = value.const_value
    if tensor is None or tensor.nbytes <= _EMBEDDED or tensor.dtype.itemsize < 1 or tensor.dtype is ir.DataType.STRING:
        return False
    if not isinstance(tensor, ir.ExternalTensor) or str(tensor.location) == where.name:
        return True
    return Path(tensor.base_dir).resolve() != where.parent


def _weight(tensor: ir.TensorProtocol) -> Weight:
    return Weight(np.require(tensor.numpy(), requirements=["C", "A"]), int(tensor.dtype))


def _serialized(
    model: ir.Model, graph: ir.Graph, piece: _Piece, inputs: list[ir.Value], initializers: list[ir.Value],
    held: frozenset[str], handed: Mapping[str, Handed],
) -> bytes:  # fmt: skip
    """The segment as a ModelProto; the `held` weights are references only, which the session is given arrays for."""
    view = ir.GraphView(
        [*inputs, *piece.reads], piece.gives, nodes=piece.nodes, initializers=initializers,
        opset_imports=graph.opset_imports, name=graph.name or "segment",
    )  # fmt: skip
    copy = view.clone()
    for value in copy.inputs:
        if value.name is not None and value.name in handed:
            kind, rank = handed[value.name]
            value.dtype = ir.DataType[kind[len("tensor(") : -1].upper()]
            if value.shape is None:
                value.shape = ir.Shape([None] * rank)
    for name in held:
        value = copy.initializers[name]
        if (tensor := value.const_value) is not None:
            value.const_value = ir.ExternalTensor(
                "held", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
            )
    functions = list(model.functions.values())
    whole = ir.Model(copy, ir_version=model.ir_version, functions=functions)
    data: bytes = ir.to_proto(whole).SerializeToString()
    return data
