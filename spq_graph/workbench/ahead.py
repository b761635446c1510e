"""What can be told of a model ahead of its export, from what stands in for it, and what of one that is open."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from functools import partial

from spq_graph.documents.recipe import Recipe
from spq_graph.models.sample import BATCH
from spq_graph.models.stand_in import StandIn
from spq_graph.passes.files.read import size_of
from spq_graph.workbench.pilot import Pilot, timed
from spq_graph.workbench.workbench import Workbench

UNCHECKED = (
    "whether torch loads and exports the folder",
    "whether its weights are finite, and the model has a place for each of them",
    "what of a target's opset and operators only the exported graph shows",
)
# What was seen of exports and of sampling in torch, in turns of `_turn`, each of which took 2 ms there: to begin, and
# for every layer; and for every layer of a step, however little is in it.
_TURN, _TURNS = 100_000, 5
_EXPORT, _EXPORT_LAYER, _STEP_LAYER = 3_500.0, 650.0, 0.75
# Bytes that the exporter writes of a graph without its weights, and of every layer.
_GRAPH, _GRAPH_LAYER = 11_000, 16_400
# Of trained models the share of sites whose ratio makes them candidates: numbers at random have no spikes.
_CANDIDATES = 0.14


def counted(bench: Workbench, recipe: Recipe) -> list[tuple[int, int]]:
    """K and N of every site that counts in shares."""
    if bench.stand_in is None:
        return [s.shape for s in bench.found.sites if not s.left_alone(recipe.quantize_lm_head)]
    *layers, head = bench.stand_in.sizes.sites.values()
    return [*layers, *([head] if recipe.quantize_lm_head else [])]


def glu_blocks(bench: Workbench) -> int:
    """How many the model has."""
    return len(bench.found.blocks) if bench.stand_in is None else bench.stand_in.sizes.layers


def bytes_of(bench: Workbench) -> int:
    """Of the model as ONNX."""
    if bench.stand_in is None:
        return size_of(bench.model)
    return bench.stand_in.bytes + _GRAPH + _GRAPH_LAYER * bench.stand_in.sizes.layers


def files_of(bench: Workbench) -> tuple[str, ...]:
    """The files that it is read from, by name."""
    return (bench.model.name,) if bench.stand_in is None else bench.stand_in.files


def unchecked(bench: Workbench) -> tuple[str, ...]:
    """What only the export shows."""
    return () if bench.stand_in is None else UNCHECKED


def tried(bench: Workbench, recipe: Recipe) -> Recipe:
    """The recipe as what is open can be tried with: where it has fewer layers, without what is set for single sites."""
    if bench.stand_in is None or bench.stand_in.whole:
        return recipe
    return recipe.model_copy(update={"keep": (), "ignore": (), "overrides": ()})


def enlarged(pilot: Pilot, stand_in: StandIn) -> Pilot:
    """What the model takes, by what its stand-in takes: time goes by the numbers of products.

    Where the stand-in holds other numbers than the model, decisions are taken to be those of a trained one.
    """
    if stand_in.whole:
        return pilot
    factor, layers = stand_in.sizes.weights / stand_in.written.weights, stand_in.sizes.layers / stand_in.written.layers
    sites = round(pilot.sites * layers)
    return replace(
        pilot,
        reference=pilot.reference.times(factor),
        calibrate=pilot.calibrate.times(factor),
        everywhere=pilot.everywhere.times(factor),
        alone=pilot.alone.times(factor),
        row=pilot.row.times(factor),
        build=pilot.build * factor,
        sites=sites,
        candidates=round(_CANDIDATES * sites),
        kl=math.inf,
        kl_kept=math.inf,
    )


def exporting(stand_in: StandIn) -> float:
    """Seconds of the export: it goes by layers, and by how fast this machine runs Python."""
    return _turn() * (_EXPORT + _EXPORT_LAYER * stand_in.sizes.layers)


def sampling(stand_in: StandIn, sequences: int, length: int, token: float) -> float:
    """Seconds to sample text from the model in torch.

    Args:
        stand_in: of the model.
        sequences: how many.
        length: tokens in each.
        token: seconds that a pass takes for each token.
    """
    steps = -(-sequences // BATCH) * length
    return steps * stand_in.sizes.layers * _STEP_LAYER * _turn() + sequences * length * token


def _turn() -> float:
    """Seconds of a little work in Python."""
    return statistics.median(timed(partial(sum, map(float, range(_TURN))))[1] for _ in range(_TURNS))
