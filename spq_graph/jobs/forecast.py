"""Plan, bytes and expected time, and nothing written."""

from __future__ import annotations

import math
from contextlib import suppress

import numpy as np

from spq_graph.decisions.choices import most_kept
from spq_graph.decisions.effort import chance_to_fall_back, effort, smooths
from spq_graph.decisions.prefix import most_trials
from spq_graph.decisions.variants import in_other_formats, rows_of
from spq_graph.documents.findings import Forecast
from spq_graph.documents.recipe import Recipe
from spq_graph.jobs.order import Order
from spq_graph.models.stand_in import StandIn
from spq_graph.runtime.proof.held import why_absent
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.errors import ActivationError, CheckError, GraphError, SourceError
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import Extent
from spq_graph.terms.site import Site
from spq_graph.workbench import ahead, continued, glance
from spq_graph.workbench.data import Given
from spq_graph.workbench.meter import SHARE_ALONE
from spq_graph.workbench.pilot import Pilot, fly, sampling
from spq_graph.workbench.prefixing import MOST_CANDIDATES, TRIAL_TOKENS
from spq_graph.workbench.sampled import sampled_shape
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.tried import Losses
from spq_graph.workbench.workbench import Workbench

# Beginning, drawing the page, and writing it: the same for every model.
AROUND = 2.0
TIMING = "Timing a small part of every step"
# Whether it is the model or what stands in for it that is to blame, and in which words, the export tells.
_OF_THE_MODEL = (ActivationError, CheckError, GraphError, SourceError)


def forecast(order: Order, *, steps: Steps | None = None) -> Forecast:
    """What `quantize` would do: sites, the cap, bytes at both ends, and time from a small part of every step.

    A GGUF is not unpacked for it, and no folder exported, where their headers tell what products there are:
    `models.stand_in` says what is timed in their place.

    Raises:
        SpqError: as `quantize`, for everything that shows before calibration, or before the export where there is none.
    """
    steps = steps or Steps()
    order.check()
    stand_in = order.stand_in()
    if stand_in is not None:
        with suppress(*_OF_THE_MODEL):
            return _forecast(order, steps, stand_in)
    return _forecast(order, steps, None)


def _forecast(order: Order, steps: Steps, stand_in: StandIn | None) -> Forecast:
    recipe = order.recipe
    with order.begun(steps, stand_in) as (bench, given):
        shapes = ahead.counted(bench, recipe)
        cap = most_kept(recipe, len(shapes))
        weights = sorted(map(math.prod, shapes), reverse=True)
        size = 4 if all(bench.stored[s.key] is Precision.FP32 for s in _counted(bench, recipe)) else 2
        source = ahead.bytes_of(bench)
        everywhere = source - sum(weights) * (size - 1)
        opened = dict(bench.steps.seconds)
        with bench.steps.step("forecast", TIMING):
            by_step = opened | _seconds(bench, given, order)
    return Forecast(
        source=order.opening.name,
        glu_blocks=ahead.glu_blocks(bench),
        sites=len(shapes),
        kept_at_most=0 if recipe.spike_ratio else cap,
        bits=order.widths,
        source_bytes=source,
        bytes_everywhere=everywhere,
        bytes_at_most=everywhere + sum(weights[:cap]) * (size - 1),
        by_step=by_step,
        unmatched=ahead.unmatched(bench),
        based_on=ahead.files_of(bench),
        unchecked=ahead.unchecked(bench),
    )


def _counted(bench: Workbench, recipe: Recipe) -> list[Site]:
    return [s for s in bench.found.sites if not s.left_alone(recipe.quantize_lm_head)]


def expect(bench: Workbench, given: Given, order: Order) -> None:
    """Tell what a run that is about to begin takes, where somebody listens.

    Nothing is tried of weights in half precision, which are widened for it: what that leaves behind would add to the
    memory of the run.
    """
    if bench.steps.ahead is None or any(stored is not Precision.FP32 for stored in bench.stored.values()):
        return
    with bench.steps.step("estimate", TIMING):
        to_come = _seconds(bench, given, order)
    bench.steps.expect(bench.steps.seconds | {name: seconds for name, seconds in to_come.items() if seconds})


def _seconds(bench: Workbench, given: Given, order: Order) -> dict[str, float]:
    """Of every step that is still to come, by its name."""
    recipe, calibration, extent = order.recipe, given.calibration, order.extent or Extent.FULL
    found: dict[str, float] = {}
    samples = calibration is None and given.ranges is None
    count, length = sampled_shape(bench, recipe.tokens_asked) if samples else (0, 0)
    sequences = calibration if calibration is not None else _random_tokens(bench, length)
    pilot = fly(bench, ahead.tried(bench, recipe), sequences, order.widths)
    tokens = calibration.tokens if calibration is not None else count * length
    if bench.stand_in is not None:
        pilot = ahead.enlarged(pilot, bench.stand_in)
        found |= ahead.opening(bench.stand_in)
    if samples and bench.stand_in is not None:
        found["sample"] = ahead.sampling(bench.stand_in, count, length, pilot.reference.token)
    elif samples:
        found["sample"] = sampling(bench, count, length, pilot.reference.token)
    if given.ranges is None:
        found["calibrate"] = pilot.calibrate.of(tokens)
    rows, measured = 0, bench.logits.output is not None
    found |= _searching_prefix(recipe, pilot, min(tokens, TRIAL_TOKENS)) if measured else {}
    for bits in order.widths:
        recipe, losses = order.recipe.model_copy(update={"bits": bits}), pilot.tried.losses.get(bits, Losses(0.0, 0.0))
        use = recipe.remedies.peel.use
        lossy = losses.everywhere > recipe.kl_aim
        missed = lossy and losses.kept > recipe.kl_budget
        peels = use == "always" or (use == "auto" and missed)
        falls_back = chance_to_fall_back(recipe, losses.by_token) if peels else 0.0
        tried = {
            "peel": peels,
            "smooth": smooths(recipe, missed=missed, falls_back=falls_back > 0.5),
            "prefix": recipe.remedies.prefix.use == "always",
        }
        if tokens and recipe.spike_ratio is None and measured:
            found[f"decide at {bits} bits"] = _deciding(
                recipe,
                pilot,
                min(tokens, recipe.sensitivity_tokens),
                lossy=lossy,
                peels=peels,
                missed=missed,
                falls_back=falls_back,
            )
        kept = lossy or recipe.spike_ratio is not None
        remedies = tuple(name for name, comes in tried.items() if comes)
        every = rows_of(recipe, formats=kept, controls=kept, remedies=remedies, extent=extent)
        rows += len(every)
    rows += len(in_other_formats(pilot.plan, extent))
    found["apply"] = pilot.build + (pilot.ours if order.recipe.may_scale_by_token else 0.0)
    found["ladder"] = _measuring(pilot, rows, given.text if measured else None)
    found |= _at_the_end(bench, pilot, order, given.text if measured else None)
    found["around"] = AROUND
    return found


def _random_tokens(bench: Workbench, length: int) -> Sequences:
    """Tokens at random, for what is to be sampled from the model, or what ranges were measured on before."""
    vocabulary = bench.source.vocab_size or bench.decoder.vocabulary or 2
    rows, length = 4, length or min(bench.sequence_length, 256)
    ids = np.random.default_rng(0).integers(0, vocabulary, (rows, length))
    first = bench.tokenizer.bos_id if bench.tokenizer is not None else bench.source.bos_token_id
    ids[:, 0] = ids[:, 0] if first is None else first
    return Sequences(ids, np.ones_like(ids), 1)


def _measuring(pilot: Pilot, rows: int, text: Sequences | None) -> float:
    """Seconds of a ladder of so many rows; the source as well, once, and beside it weights alone."""
    if text is None:
        return 0.0
    row = pilot.row.of(text.tokens) + pilot.compared * text.tokens
    return pilot.reference.of(text.tokens) + (rows + 1) * row


def _at_the_end(bench: Workbench, pilot: Pilot, order: Order, text: Sequences | None) -> dict[str, float]:
    """Seconds in which the artifact is timed beside its source, and both continue beginnings of a text."""
    if why_absent(order.recipe.profile) is not None:
        return {}
    size, token, found = ahead.bytes_of(bench), pilot.reference.token, dict[str, float]()
    if order.bench:
        found["speed"] = glance.expected(size, bench.memory, token, pilot.build)
    if text is not None and bench.tokenizer is not None:
        found["samples"] = continued.expected(size, bench.memory, token)
    return found


def _searching_prefix(recipe: Recipe, pilot: Pilot, tokens: int) -> dict[str, float]:
    """Seconds of what a search for a prefix measures, where there is one: ranges and a KL behind each that is tried."""
    if recipe.remedies.prefix.use == "never" or recipe.remedies.prefix.tokens:
        return {}
    each = pilot.calibrate.of(tokens) + pilot.tried.everywhere.of(tokens)
    each += pilot.reference.of(tokens) if recipe.remedies.prefix.use == "auto" else 0.0  # what it costs the source
    return {"prefix": pilot.reference.of(tokens) + most_trials(recipe, MOST_CANDIDATES) * each}


def _deciding(
    recipe: Recipe, pilot: Pilot, tokens: int, *, lossy: bool, peels: bool, missed: bool, falls_back: float
) -> float:
    """Seconds of the evaluations that a decision asks for; of two ways that it may go, by how likely each is."""

    def seconds(falls_back: bool) -> float:
        asked = effort(
            recipe,
            frozenset(site.precision for site in pilot.plan.kept),
            sites=pilot.sites,
            candidates=pilot.candidates,
            lossy=lossy,
            peels=peels,
            smooths=smooths(recipe, missed=missed, falls_back=falls_back),
            falls_back=falls_back,
        )
        # What is only put in order is measured on a share of the tokens.
        share = -(-tokens // SHARE_ALONE)
        alone, roughly = asked.alone * pilot.tried.alone.of(share), asked.roughly * pilot.tried.everywhere.of(share)
        together, encoding = asked.together * pilot.tried.everywhere.of(tokens), asked.encoded * pilot.tried.encode
        return pilot.reference.of(tokens) + together + roughly + alone + encoding

    return (1.0 - falls_back) * seconds(False) + falls_back * seconds(True)
