"""What down projections take, give and leave in the residual stream on one prompt, with some weights at zero."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import onnx_ir as ir

from spq_graph.decisions.outliers import Coordinate, Floats
from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.base.operand import Operand, operand_of
from spq_graph.passes.base.run import run
from spq_graph.passes.base.values import FLOATS, is_product, users_of
from spq_graph.passes.changes.patch import ZeroWeights
from spq_graph.passes.find.residual import residual_behind
from spq_graph.passes.observe import Reveal
from spq_graph.passes.pieces.split import split
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import PROFILES
from spq_graph.workbench.workbench import Workbench

T = TypeVar("T")
# Their results are integers, or codes of a scale that stands behind them.
_NOT_FLOATING = frozenset({"MatMulInteger", "QGemm", "QLinearMatMul"})


class Around(NamedTuple, Generic[T]):
    """Something of what a product takes, of what it gives, and of the residual stream behind it."""

    takes: T
    gives: T
    leaves: T


@dataclass(frozen=True, slots=True)
class DownPlace:
    """Where a down projection stands in the graph that is run.

    Attributes:
        site: as it was found.
        values: names of the values around it; None where there is none.
        operand: its weight; None where that cannot be read.
        unread: why not.
    """

    site: Site
    values: Around[str | None]
    operand: Operand | None
    unread: str | None

    @classmethod
    def of(cls, site: Site, node: ir.Node | None, known: Collection[str]) -> DownPlace:
        """Of a site whose node is this one, in a graph with values of these names."""
        operand = operand_of(node) if node is not None else None
        if operand is not None and operand.dtype not in FLOATS:
            operand = None
        gives = _result_of(node) if node is not None and node.op_type not in _NOT_FLOATING else None
        stream = residual_behind(gives) if gives is not None and site.role is Role.GLU_DOWN else None
        around = Around(
            site.input if site.input in known else None,
            gives.name if gives is not None else None,
            stream.name if stream is not None else None,
        )
        return cls(site, around, operand, None if operand is not None else _unread(node))


def _result_of(node: ir.Node) -> ir.Value:
    """What a product gives, with what an artifact of ours adds to it behind: its outlier branch."""
    last = node
    while len(users := list(users_of(last.outputs[0]))) == 1 and users[0].metadata_props.get(ADDED) == node.name:
        last = users[0]
    return last.outputs[0]


def _unread(node: ir.Node | None) -> str:
    if node is None:
        return "the product is not in the graph as one node"
    made_by = node.inputs[1].producer() if is_product(node) and node.inputs[1] is not None else None
    return f"its weight is quantized ({made_by.op_type if made_by is not None else node.op_type})"


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen in one run.

    Attributes:
        values: by site key what is around it, float32 [tokens, channels]; of an expert its own rows.
        logits: float32 [tokens, vocabulary]; None where the model gives none.
    """

    values: Mapping[str, Around[Floats | None]]
    logits: Floats | None


class Eye:
    """Runs one prompt through a model, again and again.

    Args:
        bench: the model, which stays as it is.
        sites: what is looked at.
        ids: the prompt, no longer than the graph takes.

    Attributes:
        places: of the sites.
        tokens: how many the prompt has.
    """

    def __init__(self, bench: Workbench, sites: Sequence[Site], ids: Sequence[int]) -> None:
        graph = bench.prepared.adapted(PROFILES["cpu"]).graph
        nodes = {node.name: node for node in graph}
        known = {value.name or "" for node in graph for value in node.outputs}
        self.places = [DownPlace.of(site, nodes.get(site.node), known) for site in sites]
        self.tokens = len(ids)
        self._bench = bench
        self._ids = np.array([ids], dtype=np.int64)

    def look(self, zeroed: Mapping[str, Collection[Coordinate]]) -> Look:
        """Run the prompt once.

        Args:
            zeroed: by site key, weights that are zero.

        Raises:
            ActivationError: an activation is NaN or infinite.
            SpqError: as `SegmentedRunner`.
        """
        bench, model = self._bench, self._bench.prepared.adapted(PROFILES["cpu"])
        names = [name for place in self.places for name in place.values if name is not None]
        logits = bench.logits.output
        reveal = Reveal(names if logits is None else [*names, logits])
        zeros = {place.site.node: zeroed.get(place.site.key, ()) for place in self.places}
        run(model, [ZeroWeights(zeros), reveal])
        runner = SegmentedRunner(split(model, bench.model, bench.memory), outputs=reveal.names)
        ids, mask = runner.filled(self._ids, np.ones_like(self._ids))
        (arrays,) = runner.results([(ids, mask)])
        found = {name: self._rows(array, ids.size) for name, array in zip(reveal.values, arrays, strict=True)}
        if not all(np.isfinite(found[name]).all() for name in names):
            raise bench.not_finite(ids, mask, "the prompt")

        def seen(name: str | None) -> Floats | None:
            return found[name] if name is not None else None

        values = {place.site.key: Around(*map(seen, place.values)) for place in self.places}
        return Look(values, seen(logits))

    def _rows(self, array: Floats, tokens: int) -> Floats:
        """[tokens, channels] of the prompt alone, where rows are tokens: a graph may insist on more of them."""
        rows = array.reshape(-1, array.shape[-1])
        return rows[: self.tokens] if len(rows) == tokens else rows
