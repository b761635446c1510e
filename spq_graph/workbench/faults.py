"""Where the numbers of a graph stop being numbers, or pass what holds them: named by site, with the size that was seen.

Found after something was not finite, on the batch on which it was not; what calibration itself sees of float16 is held
against what that holds whether or not a runtime that computes in float32 hides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import ADDED, PREFIX
from spq_graph.passes.base.run import run
from spq_graph.passes.base.values import FLOATS, weight_of
from spq_graph.passes.find.flow import Harm, harms, held_in_half, in_half
from spq_graph.passes.find.quantized import identify_floating
from spq_graph.passes.observe import ObserveFaults
from spq_graph.passes.pieces.split import split
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import GraphError, SourceError
from spq_graph.terms.site import Site
from spq_graph.terms.targets import LARGEST_HALF

HALF = f"float16 holds no number beyond {LARGEST_HALF:,.0f}"
WIDER = (
    "export the model in float32 or bfloat16, and pass that file; of a Hugging Face folder `spq-graph` makes one in "
    "float32 by itself"
)
_AT_ONCE = 256  # values that are observed in one session
AGAIN = "export the model again in float32, from sound weights"
_SOUND = "export the model again from sound weights"
_MASK = "give the graph a mask of large negative numbers in place of -inf, or data without padding on the left"


class _Seen(NamedTuple):
    """What was seen of a value: its largest finite size, whether it holds NaN, its ends."""

    size: float
    lost: bool
    low: float
    high: float


class _Half(NamedTuple):
    """The float16 values of a graph, and those that may grow past what it holds."""

    every: set[ir.Value]
    growing: Mapping[ir.Value, Harm]


@dataclass(slots=True)
class Places:
    """How people know the values of a graph.

    Attributes:
        graph: the graph.
        keys: of sites, by the name of their node.
        read: of the first site that reads a value, by the value's name.
    """

    graph: ir.Graph
    keys: dict[str, str] = field(default_factory=dict)
    read: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model, sites: Iterable[Site] | None = None) -> Places:
        """Those of a graph; its sites are sought where they are not given."""
        places = cls(model.graph)
        for site in identify_floating(model).sites if sites is None else sites:
            places.keys[site.node] = site.key
            places.read.setdefault(site.input, site.key)
        for node in model.graph:
            if (key := node.metadata_props.get(f"{PREFIX}site")) is not None:
                places.keys[node.name or ""] = key
        return places

    def of_value(self, name: str, maker: ir.Node | None) -> str:
        """Where a value is, in words."""
        result = self.result_of(maker)
        if result is not None:
            return f"the result of {result}"
        if name in self.read:
            return f"the input of {self.read[name]}"
        return f"the result of node {maker.name} ({maker.op_type})" if maker is not None else f"'{name}'"

    def result_of(self, maker: ir.Node | None) -> str | None:
        """The site that a node is the product of, or was inserted for."""
        if maker is None:
            return None
        return self.keys.get(maker.metadata_props.get(ADDED, maker.name or ""))

    def next_site(self, value: ir.Value) -> str | None:
        """The first site, in the graph's order, that reads what follows from a value."""
        reached = {value}
        for node in [*self.graph] if value.producer() is None else _behind(self.graph, value):
            if any(read in reached for read in node.inputs if read is not None):
                if (node.name or "") in self.keys:
                    return self.keys[node.name or ""]
                reached.update(node.outputs)
        return None


def _behind(graph: ir.Graph, value: ir.Value) -> list[ir.Node]:
    nodes = list(graph)
    maker = value.producer()
    return nodes[nodes.index(maker) + 1 :] if maker in nodes else nodes


@dataclass(frozen=True, slots=True)
class Fault:
    """The first place where something went wrong.

    Attributes:
        what: it is, in words.
        where: in the graph, in words.
        remedy: what can be done about it.
        site: whose result it is, or that of the first site behind it; None where there is none.
        half: whether float16 is too small for what is there.
    """

    what: str
    where: str
    remedy: str
    site: str | None = None
    half: bool = False


def first_fault(
    model: ir.Model, file: Path, ids: Ids, mask: Ids, sites: Iterable[Site] | None = None, memory: int | None = None
) -> Fault | None:
    """The first place of a graph where a batch, int64 [batch, length], gives NaN, infinity, or too much for float16.

    Values are observed some at a time, in the graph's order, until one is at fault: the time that ONNX Runtime takes to
    open a session over them grows with the square of their number.

    Args:
        model: the graph, as it is run on the CPU.
        file: that it was read from.
        ids: the batch.
        mask: its mask.
        sites: where they are known.
        memory: bytes that the weights in a session may take.

    Returns:
        None where nothing of the kind is seen.
    """
    places, known = Places.of(model, sites), harms(model.graph)
    half = _Half(in_half(model.graph), held_in_half(model.graph))
    values = [v for node in model.graph for v in node.outputs if v.name and (v.dtype is None or v.dtype in FLOATS)]
    values = [v for v in values if v.dtype is not None or v in known]
    seen: dict[ir.Value, _Seen] = {}
    for start in range(0, len(values), _AT_ONCE):
        group = values[start : start + _AT_ONCE]
        try:
            seen |= _seen(model, file, ids, mask, group, memory)
        except (GraphError, SourceError):  # what is looked for must not be hidden by how it is looked for
            return None
        for value in group:
            if (fault := _fault(value, seen, known.get(value, Harm.NONE), half, places)) is not None:
                return fault
    return None


def _seen(
    model: ir.Model, file: Path, ids: Ids, mask: Ids, values: Sequence[ir.Value], memory: int | None
) -> dict[ir.Value, _Seen]:
    """What a batch makes of some values; only what they follow from is run, in a copy of the graph."""
    observed = model.clone()
    run(observed, [ObserveFaults([value.name or "" for value in values])])
    runner = SegmentedRunner(split(observed, file, memory), outputs=[v.name or "" for v in observed.graph.outputs])
    (results,) = runner.results([runner.filled(ids, mask)])
    return {v: _Seen(float(r[0]), r[1] > 0, float(r[2]), float(r[3])) for v, r in zip(values, results, strict=True)}


def _fault(value: ir.Value, seen: Mapping[ir.Value, _Seen], harm: Harm, half: _Half, places: Places) -> Fault | None:
    own, maker = seen[value], value.producer()
    reads = [seen[v] for v in maker.inputs if v is not None and v in seen] if maker is not None else []
    # Where what is read is lost already, or the graph itself expects it and takes something else instead.
    if any(read.lost for read in reads) or any(use.node.op_type == "IsNaN" for use in value.uses()):
        return None
    infinite = harm and (own.high == np.inf or (harm is Harm.ANY and own.low == -np.inf))
    top = own.size if harm is Harm.ANY else own.high
    if not (own.lost or infinite or (value in half.growing and top > LARGEST_HALF)):
        return None
    place, (where, site) = places.of_value(value.name or "", maker), _where(value, places)
    if (own.lost or infinite) and (broken := _not_finite_constant(maker)) is not None:
        what = f"{place} is {'NaN' if own.lost else 'infinite'}, for the constant '{broken.name}' is not finite"
        return Fault(what, where, _SOUND if broken.lost or harm else _MASK, site)
    if own.lost:
        return _lost(maker, reads, place, where, site)
    if infinite:
        what = f"{place} is infinite; the largest finite number there or in front of it is "
        size, is_half = max([own.size, *(read.size for read in reads)]), value in half.every
        what = f"{HALF}, and {what}{size:,.0f}" if is_half else f"{what}{size:.4g}"
        return Fault(what, where, WIDER if is_half else AGAIN, site, is_half)
    return Fault(f"{HALF}, and {place} reaches {top:,.0f}", where, WIDER, site, half=True)


def _where(value: ir.Value, places: Places) -> tuple[str, str | None]:
    """Which value it is, in words, and the site concerned."""
    behind = places.next_site(value)
    where = f"value '{value.name}'" + (f", in front of the input of {behind}" if behind is not None else "")
    return where, places.result_of(value.producer()) or behind


def _lost(maker: ir.Node | None, reads: list[_Seen], place: str, where: str, site: str | None) -> Fault:
    if maker is not None and maker.op_type in ("Softmax", "Attention") and any(read.low == -np.inf for read in reads):
        return Fault(f"{place} is NaN, for every score of a row is -inf: all tokens are masked", where, _MASK, site)
    return Fault(f"{place} is NaN, and nothing in front of it is", where, _SOUND, site)


class _Broken(NamedTuple):
    """A constant that is not finite: its name, and whether it holds NaN."""

    name: str
    lost: bool


def _not_finite_constant(maker: ir.Node | None) -> _Broken | None:
    """The constant with NaN or infinity among what a node reads, seen through Cast and Transpose."""
    for read in maker.inputs if maker is not None else ():
        weight = weight_of(read)
        if weight is not None and weight.dtype in FLOATS and not np.isfinite(numbers := weight.numpy()).all():
            return _Broken(weight.initializer.name or "", bool(np.isnan(numbers).any()))
    return None
