"""Add in-graph reductions to a copy of the model, so that calibration never fetches an activation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.conditions import CanonicalPass, promise
from spq_graph.passes.base.values import FLOATS
from spq_graph.terms.errors import GraphError


@dataclass(frozen=True, slots=True)
class Probe:
    """Names of the outputs that observe one value.

    Attributes:
        value: the observed activation, [..., K].
        low, high: minimum and maximum over K by token, float32 [...].
        channel_low, channel_high: minimum and maximum over a sequence by channel, float32 [..., K].
    """

    value: str
    low: str
    high: str
    channel_low: str
    channel_high: str

    @property
    def outputs(self) -> list[str]:
        """All four, in the order of the fields."""
        return [self.low, self.high, self.channel_low, self.channel_high]


@dataclass(frozen=True, slots=True)
class Size:
    """Names of the outputs that tell how large one value becomes.

    Attributes:
        value: what is told of.
        outputs: maximum over its last axis, float32 [...], and the minimum where that is told, too.
    """

    value: str
    outputs: tuple[str, ...]


FINITE_CHECK = "spq_graph.finite"
FAULTS = "spq_graph.faults"
REVEALED = "spq_graph.revealed"


class Observe(CanonicalPass):
    """Replace the graph's outputs by reductions over the given values.

    What the reductions do not need (the head of the model) is no longer computed. ONNX Runtime's ReduceMax drops NaN,
    so `FINITE_CHECK` holds the sum of the last value, which NaN anywhere before it reaches.

    Args:
        values: names of the activations to observe, in topological order.
        sized: names of values of which only the size is told, and whether their negative elements count as well; where
            others are observed, only those that they follow from.
    """

    def __init__(self, values: Sequence[str], sized: Mapping[str, bool] = MappingProxyType({})) -> None:
        super().__init__()
        self.values = list(dict.fromkeys(values))
        self.sized = dict(sized)
        self.probes: list[Probe] = []
        self.sizes: list[Size] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, known, tape = _without_outputs(model)
        for index, name in enumerate(self.values):
            value = as_float32(tape, known, name)
            outputs = [_reduce(tape, op, value, axis) for axis in (-1, -2) for op in ("ReduceMin", "ReduceMax")]
            for part, output in zip(("low", "high", "channel_low", "channel_high"), outputs, strict=True):
                _publish(graph, output, f"spq_graph.{index}.{part}")
            self.probes.append(Probe(name, *(o.name or "" for o in outputs)))
            if index == len(self.values) - 1:
                _publish(graph, tape.op("ReduceSum", [value], {"keepdims": 0}), FINITE_CHECK)
        self._tell_sizes(graph, known, tape)
        _right_behind(graph, tape.nodes)
        return ir.passes.PassResult(model, modified=True)

    def _tell_sizes(self, graph: ir.Graph, known: dict[str, ir.Value], tape: ir.tape.Tape) -> None:
        needed = _needed(known[name] for name in self.values if name in known)
        for name, both in self.sized.items():
            if needed and known.get(name) not in needed:
                continue
            value, prefix = as_float32(tape, known, name), f"spq_graph.size.{len(self.sizes)}"
            told = {f"{prefix}.high": "ReduceMax"} | ({f"{prefix}.low": "ReduceMin"} if both else {})
            for output, op in told.items():
                _publish(graph, _reduce(tape, op, value, -1), output)
            self.sizes.append(Size(name, tuple(told)))

    def ensures(self, model: ir.Model) -> None:
        """Every output is one of the reductions."""
        expected = [name for probe in self.probes for name in probe.outputs] + ([FINITE_CHECK] if self.probes else [])
        promise(_other_outputs(model, [*expected, *(name for size in self.sizes for name in size.outputs)]))


class ObserveFaults(CanonicalPass):
    """Replace the graph's outputs by four numbers for each value.

    Float32 [4]: the largest absolute value of the finite elements, 1 where an element is NaN and 0 otherwise, the
    smallest and the largest element, NaN left out.
    """

    def __init__(self, values: Sequence[str]) -> None:
        super().__init__()
        self.values = list(dict.fromkeys(values))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, known, tape = _without_outputs(model)
        zero = tape.initializer(ir.Tensor(np.zeros(1, dtype=np.float32)), name=f"{FAULTS}.zero")
        observed: list[ir.Value] = []
        for name in self.values:
            value = as_float32(tape, known, name)
            flat = tape.op("Concat", [tape.op("Reshape", [value, _indices(tape, [-1])]), zero], {"axis": 0})
            lost = tape.op("IsNaN", [flat])
            known_numbers = tape.op("Where", [lost, zero, flat])
            finite = tape.op("Where", [tape.op("IsInf", [known_numbers]), zero, tape.op("Abs", [known_numbers])])
            # That of the finite ones first: it stands last, and whatever reads it stands behind all of them.
            parts = [
                _reduce(tape, "ReduceMax", finite, 0, keep=True),
                _reduce(tape, "ReduceMax", tape.op("Cast", [lost], {"to": ir.DataType.FLOAT}), 0, keep=True),
                _reduce(tape, "ReduceMin", known_numbers, 0, keep=True),
                _reduce(tape, "ReduceMax", known_numbers, 0, keep=True),
            ]
            observed.append(tape.op("Concat", parts, {"axis": 0}))
        _right_behind(graph, tape.nodes)  # while there are no outputs: each move looks at all of them
        for index, value in enumerate(observed):
            _publish(graph, value, f"{FAULTS}.{index}")
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """The outputs are four numbers for each value."""
        promise(_other_outputs(model, [f"{FAULTS}.{index}" for index in range(len(self.values))]))


class Reveal(CanonicalPass):
    """Replace the graph's outputs by values as they are, float32, named `names` in the order of the values.

    For one short prompt: data are calibrated with `Observe`, which lets no activation leave the graph.
    """

    def __init__(self, values: Sequence[str]) -> None:
        super().__init__()
        self.values = list(dict.fromkeys(values))

    @property
    def names(self) -> list[str]:
        """Of the outputs."""
        return [f"{REVEALED}.{index}" for index in range(len(self.values))]

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, known, tape = _without_outputs(model)
        revealed = [tape.op("Identity", [as_float32(tape, known, name)]) for name in self.values]
        _right_behind(graph, tape.nodes)
        for name, value in zip(self.names, revealed, strict=True):
            _publish(graph, value, name)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """Every output is one of the values."""
        promise(_other_outputs(model, self.names))


def _other_outputs(model: ir.Model, expected: Sequence[str]) -> str | None:
    found = sorted(v.name or "" for v in model.graph.outputs)
    return None if found == sorted(expected) else "the graph returns something else than what it observes"


def _needed(values: Iterable[ir.Value]) -> set[ir.Value]:
    """These values, and all that they follow from."""
    found: set[ir.Value] = set()
    pending = list(values)
    while pending:
        value = pending.pop()
        if value not in found:
            found.add(value)
            node = value.producer()
            pending += [read for read in node.inputs if read is not None] if node is not None else []
    return found


def _without_outputs(model: ir.Model) -> tuple[ir.Graph, dict[str, ir.Value], ir.tape.Tape]:
    """The graph with its outputs taken away, its values by name, and a tape to write new ones with."""
    graph = model.graph
    known = _values_by_name(graph)
    graph.outputs.clear()
    return graph, known, ir.tape.Tape(graph)


def _right_behind(graph: ir.Graph, added: Sequence[ir.Node]) -> None:
    """Move nodes from the graph's end to where what they read is made: a part of the graph then observes itself."""
    for node in added:
        producer = next((p for v in node.inputs if v is not None and (p := v.producer()) is not None), None)
        if producer is not None:
            graph.remove(node)
            graph.insert_after(producer, node)


def _values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    values = {value.name or "": value for value in graph.inputs}
    values |= {output.name or "": output for node in graph for output in node.outputs}
    return values


def as_float32(tape: ir.tape.Tape, known: dict[str, ir.Value], name: str) -> ir.Value:
    """The value as float32.

    Raises:
        GraphError: the graph holds no such value.
    """
    if name not in known:
        raise GraphError(
            f"the graph holds no value '{name}'",
            remedy="plan and calibrate this model itself: what was given is another's",
        )
    value = known[name]
    if value.dtype in FLOATS - {ir.DataType.FLOAT} or value.dtype is None:
        return tape.op("Cast", [value], {"to": ir.DataType.FLOAT})
    return value


def _reduce(tape: ir.tape.Tape, op_type: str, value: ir.Value, axis: int, *, keep: bool = False) -> ir.Value:
    if tape.graph_like is not None and tape.graph_like.opset_imports.get("", 21) < 18:
        return tape.op(op_type, [value], {"axes": [axis], "keepdims": int(keep)})
    return tape.op(op_type, [value, _indices(tape, [axis])], {"keepdims": int(keep)})


def _indices(tape: ir.tape.Tape, numbers: Sequence[int]) -> ir.Value:
    """A constant of int64, one for each list of numbers."""
    name = f"spq_graph.indices.{'_'.join(map(str, numbers))}"
    graph = tape.graph_like
    if isinstance(graph, ir.Graph) and name in graph.initializers:
        return graph.initializers[name]
    return tape.initializer(ir.Tensor(np.array(numbers, dtype=np.int64)), name=name)


def _publish(graph: ir.Graph, value: ir.Value, name: str) -> None:
    value.name = name
    value.dtype = ir.DataType.FLOAT
    graph.outputs.append(value)
