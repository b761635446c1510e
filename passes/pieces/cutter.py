"""Where a graph is cut into pieces, and which nodes and values each of them has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

import onnx_ir as ir

from spq_graph.passes.base.values import is_standard
from spq_graph.passes.pieces.tokenwise import is_tokenwise

# What a session on the CPU widens to float32, or holds as it is; a table that is only gathered from stays in its file.
_WIDENED = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
_FOLLOWS_ITS_PRODUCT = frozenset({"QuantizeLinear", "DequantizeLinear"})
# A cut early in a segment must save more than a value to be taken: segments should be few.
_EARLIEST = 0.5


@dataclass(slots=True)
class Piece:
    """Nodes of a segment in order, and the values at its ends."""

    nodes: list[ir.Node]
    reads: list[ir.Value]
    gives: list[ir.Value]
    bytes: int


@dataclass(slots=True)
class Cutter:
    """What is known of a graph's nodes while it is cut.

    Attributes:
        light_bytes: the most constants that what is computed again may follow from.
        needed: nodes that an output depends on, in order.
        reads: what each of them reads, subgraphs included.
        paid: those that no segment computes again.
    """

    graph: ir.Graph
    light_bytes: int
    needed: list[ir.Node] = field(init=False)
    reads: dict[ir.Node, list[ir.Value]] = field(init=False)
    paid: list[ir.Node] = field(init=False)
    _constant: dict[ir.Node, int] = field(default_factory=dict)
    _light: dict[ir.Node, int] = field(default_factory=dict)
    _sources: dict[ir.Value, tuple[ir.Value, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reads = {node: list(dict.fromkeys(read_by(node, self.graph))) for node in self.graph}
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

    def pieces(self, limit: int) -> list[Piece]:
        """Cut, and complete every piece with the free nodes that it needs."""
        bounds = self._bounds(limit)
        index = {node: i for i, node in enumerate(self.paid)}
        outputs = list(self.graph.outputs)
        pieces: list[Piece] = []
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
            held = sum(self.bytes_of(node) for node in nodes)
            gives = list(dict.fromkeys([*given, *free_outputs]))
            pieces.append(Piece(sorted(nodes, key=order.__getitem__), reads, gives, held))
        return pieces

    def _bounds(self, limit: int) -> list[int]:
        """Where pieces end, as places among the paid nodes.

        What is cut at all is also cut in front of the product that gives the logits, the largest behind the last node
        that looks at more than one token: what is behind that cut need not be run for all tokens at once.
        """
        held, crossing = self.held, self._crossing()
        bounds = list(_bounds(held, crossing, limit))
        if bounds:
            places = range(len(self.paid))
            first = next((place + 1 for place in reversed(places) if not is_tokenwise(self._alone(place))), 0)
            head = max(places[first:], key=held.__getitem__, default=0)
            if head > bounds[-1] and crossing[head] == 1:
                bounds = [*_bounds(held[:head], crossing, limit), head]
        return [*bounds, len(self.paid)]

    def _alone(self, place: int) -> list[ir.Node]:
        """A paid node, behind the free ones that it needs."""
        node = self.paid[place]
        free = self._free_behind(self.reads[node])
        return [*(one for one in self.needed if one in free), node] if free else [node]

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

    @property
    def held(self) -> list[int]:
        """Bytes of weights by paid node, with those of the constants behind it."""
        return [
            self.bytes_of(node) + sum(map(self.bytes_of, self._behind(self.reads[node], self._constant.__contains__)))
            for node in self.paid
        ]

    def bytes_of(self, node: ir.Node) -> int:
        """Bytes of the weights that a node reads, in a session."""
        if node.op_type in ("Gather", "GatherND") and is_standard(node):
            return 0
        tensors = [v.const_value for v in self.reads[node] if v.producer() is None and v.const_value is not None]
        return sum(map(widened, tensors))

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


def widened(tensor: ir.TensorProtocol) -> int:
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


def read_by(node: ir.Node, graph: ir.Graph) -> Iterator[ir.Value]:
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
