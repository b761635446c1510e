"""What can be told of a model ahead of its export, from what stands in for it, and what of one that is open."""

from __future__ import annotations

import math
from dataclasses import replace

from spq_graph.documents.recipe import Recipe
from spq_graph.models.sample import BATCH
from spq_graph.models.stand_in import StandIn
from spq_graph.passes.files.read import size_of
from spq_graph.workbench.pilot import OBSERVED, Pilot, turn
from spq_graph.workbench.rates import Rate
from spq_graph.workbench.tried import Losses
from spq_graph.workbench.workbench import Workbench

UNCHECKED = (
    "whether torch loads and exports the folder",
    "whether its weights are finite, and the model has a place for each of them",
    "what of a target's opset and operators only the exported graph shows",
)
OF_OTHERS = "what the family does beside its products, and which of those are no sites: a plain decoder stands for it"
OF_GGUF = "whether transformers unpacks the file into a folder, with its types of weights and its rotary positions"
# What was seen of exports and of sampling in torch, in turns of `turn`, each of which took 2 ms there: to begin, for
# every layer, for what chooses between experts, and for each of those; and for every layer of a step, however little is
# in it, and every expert.
_EXPORT, _EXPORT_LAYER, _EXPORT_CHOICE, _EXPORT_EXPERT = 2_400.0, 560.0, 225.0, 50.0
_STEP_LAYER, _STEP_EXPERT = 0.75, 0.1
# Likewise of unpacking a GGUF: to begin, and for every million numbers.
_UNPACK, _UNPACK_MILLION = 1_300.0, 9.0
# Bytes that the exporter writes of a graph without its weights, of every layer, and of every expert.
_GRAPH, _GRAPH_LAYER, _GRAPH_EXPERT = 11_000, 16_400, 3_000
# How much longer the exported graph of a small model takes to be opened: cache, mask and positions are nodes as well.
_EXPORTED = 1.6
# Of trained models the share of sites whose ratio makes them candidates: numbers at random have no spikes.
_CANDIDATES = 0.14


def counted(bench: Workbench, recipe: Recipe) -> list[tuple[int, int]]:
    """K and N of every site that counts in shares."""
    if bench.stand_in is None:
        return [s.shape for s in bench.found.sites if not s.left_alone(recipe.quantize_lm_head)]
    sizes = bench.stand_in.sizes
    return [*sizes.counted, *([sizes.head] if recipe.quantize_lm_head else [])]


def glu_blocks(bench: Workbench) -> int:
    """How many the model has."""
    return len(bench.found.blocks) if bench.stand_in is None else bench.stand_in.sizes.gated


def bytes_of(bench: Workbench) -> int:
    """Of the model as ONNX."""
    if bench.stand_in is None:
        return size_of(bench.model)
    layers, experts = _layers(bench.stand_in)
    return bench.stand_in.bytes + _GRAPH + _GRAPH_LAYER * layers + _GRAPH_EXPERT * experts


def files_of(bench: Workbench) -> tuple[str, ...]:
    """The files that it is read from, by name."""
    return (bench.model.name,) if bench.stand_in is None else bench.stand_in.files


def unmatched(bench: Workbench) -> int:
    """How many products are no sites, as far as is known."""
    return 0 if bench.stand_in is not None and not bench.stand_in.exact else len(bench.found.unmatched)


def unchecked(bench: Workbench) -> tuple[str, ...]:
    """What only the export shows."""
    if bench.stand_in is None:
        return ()
    more = [] if bench.stand_in.exact else [OF_OTHERS]
    return (*UNCHECKED, *([OF_GGUF] if bench.stand_in.packed else []), *more)


def tried(bench: Workbench, recipe: Recipe) -> Recipe:
    """The recipe as what is open can be tried with: where it has fewer layers, without what is set for single sites."""
    if bench.stand_in is None or bench.stand_in.whole:
        return recipe
    return recipe.model_copy(update={"keep": (), "ignore": (), "overrides": ()})


def enlarged(pilot: Pilot, stand_in: StandIn) -> Pilot:
    """What the model takes, by what its stand-in takes: time goes by nodes where it is small, and else by weights.

    Where the stand-in says something else than the model, decisions are taken to be those of a trained one.
    """
    if stand_in.whole:
        held, run, longer = _EXPORTED, 1.0, pilot
    else:
        held, run = stand_in.sizes.weights / stand_in.written.weights, stand_in.sizes.run / stand_in.written.run
        reference = pilot.reference.times(held, run)
        # It ends in front of the head, which is most of what stands in for a model with a large vocabulary.
        calibrate = Rate(held * pilot.calibrate.fixed, OBSERVED * reference.token)
        encode = held * pilot.tried.encode
        longer = replace(pilot, reference=reference, calibrate=calibrate, tried=replace(pilot.tried, encode=encode))
    tried = replace(
        longer.tried, everywhere=pilot.tried.everywhere.times(held, run), alone=pilot.tried.alone.times(held, run)
    )
    found = replace(longer, tried=tried, row=pilot.row.times(held, run), build=held * pilot.build)
    if stand_in.whole and stand_in.exact:
        return found
    sites = len(stand_in.sizes.counted)
    losses = dict.fromkeys(pilot.tried.losses, Losses(math.inf, math.inf))
    tried = replace(tried, losses=losses)
    return replace(found, sites=sites, candidates=round(_CANDIDATES * sites), tried=tried)


def opening(stand_in: StandIn) -> dict[str, float]:
    """Seconds of what comes before the graph: by layers and experts, and by how fast this machine runs Python."""
    once, (layers, experts) = turn(), _layers(stand_in)
    routed = sum(bool(layer.experts) for layer in stand_in.sizes.layers)
    export = _EXPORT + _EXPORT_LAYER * layers + _EXPORT_CHOICE * routed + _EXPORT_EXPERT * experts
    unpack = {"unpack": once * (_UNPACK + _UNPACK_MILLION * stand_in.bytes / 4e6)} if stand_in.packed else {}
    return unpack | {"export": once * export}


def _layers(stand_in: StandIn) -> tuple[int, int]:
    """How many layers there are, and experts in all of them."""
    return len(stand_in.sizes.layers), sum(len(layer.experts) for layer in stand_in.sizes.layers)


def sampling(stand_in: StandIn, sequences: int, length: int, token: float) -> float:
    """Seconds to sample text from the model in torch.

    Args:
        stand_in: of the model.
        sequences: how many.
        length: tokens in each.
        token: seconds that a pass takes for each token.
    """
    steps = -(-sequences // BATCH) * length
    layers, experts = _layers(stand_in)
    return steps * (_STEP_LAYER * layers + _STEP_EXPERT * experts) * turn() + sequences * length * token
