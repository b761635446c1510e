"""From ranges to a plan: decisions on paper, and the measuring that they ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from spq_graph.decisions.decide import decide
from spq_graph.decisions.effort import effort, smooths
from spq_graph.decisions.enough import too_few
from spq_graph.decisions.prefix import Footing
from spq_graph.decisions.verdict import decided_on_fewer
from spq_graph.documents.changes import Prefix
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe, load_recipe
from spq_graph.passes.find.absorbers import find_absorbers, largest_rows
from spq_graph.passes.find.results import largest_results
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.absorber import Absorber, Absorbers, Place
from spq_graph.terms.form import Form
from spq_graph.terms.precision import Precision
from spq_graph.workbench.meter import SHARE_ALONE
from spq_graph.workbench.not_finite import sized
from spq_graph.workbench.shared_meter import Decision, shared_meter
from spq_graph.workbench.steps import Tick
from spq_graph.workbench.workbench import Workbench


def widths_of(recipe: Recipe, ladder_bits: Sequence[int]) -> tuple[int, ...]:
    """Bit widths to decide at, each once: the recipe's, which OUT holds, and those that get rows in the ladder only.

    Raises:
        UsageError: one of them is not legal.
    """
    widths = tuple(dict.fromkeys((recipe.bits, *ladder_bits)))
    for bits in widths[1:]:
        load_recipe(None, bits=bits)
    return widths


def make_plan(
    bench: Workbench, recipe: Recipe, bits: int, ranges: Ranges, sequences: Sequences | None, on: Footing | None = None
) -> Plan:
    """Decide at so many bits; by the ratio rule without sequences, and where the model gives no logits to measure.

    Args:
        bench: the source.
        recipe: what is wanted.
        bits: the width.
        ranges: of the source.
        sequences: what to measure on.
        on: a prefix, and what calibration saw with it; None for no prefix.

    Raises:
        ActivationError: an activation is larger than what holds it, or not finite.
        NotFiniteError: the logits of what was decided are not finite.
    """
    recipe = recipe.model_copy(update={"bits": bits})
    on = on or Footing(None, ranges.values)
    standing = on.treatments(bench.found.every, recipe, ranges.values)
    ranges = replace(ranges, values=dict(on.seen))
    _refuse_too_large(bench, ranges)
    name, label = f"decide at {bits} bits", f"Deciding at {bits} bits"
    with bench.steps.step(name, label) as tick, ExitStack() as measuring:
        found = None
        if sequences is not None and recipe.spike_ratio is None and bench.logits.output is not None:
            decision = Decision(sequences, recipe, ranges, on.prefix)
            found = measuring.enter_context(shared_meter(bench, decision, _counted(bench, recipe, ranges, tick)))
        made = decide(
            bench.found.every,
            ranges,
            recipe,
            bench.ref,
            stored=bench.stored,
            results=_results(bench, recipe, ranges),
            held=bench.found.held,
            unmatched=bench.found.unmatched,
            origin=sequences.origin if sequences is not None else "",
            measure=found.whole.kl if found is not None else None,
            stderr_of=found.whole.stderr if found is not None else None,
            alone=found.alone.kl if found is not None else None,
            alone_stderr_of=found.alone.stderr if found is not None else None,
            alone_together=found.alone.kl_of_all if found is not None else None,
            tokens=found.whole.tokens if found is not None else 0,
            absorbers=_smoothed_behind(bench, on.prefix) if recipe.remedies.smooth.use != "never" else None,
            standing=standing,
            token_text=bench.tokenizer.token_text if bench.tokenizer is not None else None,
        )
    made.search.kl_prefixed, made.search.kl_behind_prefix = dict(on.kls) or None, dict(on.alone) or None
    if found is not None and made.search.rule == "auto":
        made.search.alone_tokens = found.alone.tokens
    if found is not None and found.fewer is not None:
        made.search.fewer = found.fewer
        bench.steps.remark(decided_on_fewer(made, found.fewer))
    remark = too_few(ranges.tokens, bench.known_length)
    return made.model_copy(update={"calibration": made.calibration.model_copy(update={"remark": remark})})


def _smoothed_behind(bench: Workbench, prefix: Prefix | None) -> Absorbers:
    """What of a model takes factors of channels behind a prefix: its values stand in the graph as they are."""
    found = absorbers_of(bench)
    if prefix is None:
        return found
    return found.without(Place.VALUE, "the values of the prefix, which attention reads as well, have no factors")


def absorbers_of(bench: Workbench) -> Absorbers:
    """What of a model takes factors of channels."""
    graph, found = bench.prepared.graph.graph, bench.found
    absorbers, others = find_absorbers(graph, found.sites)
    sites = {site.key: site for site in found.sites}

    @cache
    def rows(absorber: Absorber) -> npt.NDArray[np.float32] | None:
        return largest_rows(graph, absorber, [sites[key] for key in absorber.sites])

    return Absorbers(tuple(absorbers), tuple(others), rows)


def _counted(bench: Workbench, recipe: Recipe, ranges: Ranges, tick: Tick) -> Callable[[int], None]:
    """What to call after every pass: a search goes on from what meets the budget at once to what does not.

    That a model is sensitive does not say which way a search goes: the shorter one is expected as long as it can be.
    """
    sites = [s for s in bench.found.sites if s.input in ranges.values and not s.left_alone(recipe.quantize_lm_head)]
    asks = partial(
        effort,
        recipe,
        frozenset(bench.stored.values()),
        sites=len(sites),
        candidates=sum(ranges.values[site.input].ratio > recipe.candidate_ratio for site in sites),
    )
    courses = ((False, False, False), (True, False, False), (True, True, False), (True, True, True))
    efforts = (
        asks(lossy=lossy, peels=peels, smooths=smooths(recipe, missed=peels, falls_back=falls), falls_back=falls)
        for lossy, peels, falls in courses
    )
    # The source is run as well.
    totals = sorted(SHARE_ALONE * (1 + one.together) + one.roughly + one.alone for one in efforts)
    done = 0

    def after(measured: int) -> None:
        nonlocal done
        done += measured
        tick(done, next((total for total in totals if total > done), done + SHARE_ALONE))

    return after


def _refuse_too_large(bench: Workbench, ranges: Ranges) -> None:
    """Refuse ranges beyond what holds the activations that they are of.

    Raises:
        ActivationError: the graph holds such an activation in float16.
    """
    held, values = sized(bench.prepared.graph, bench.found.sites), ranges.values
    error = bench.too_large({name: values[name].peak.value for name in held if name in values})
    if error is not None:
        raise error


def _results(bench: Workbench, recipe: Recipe, ranges: Ranges) -> dict[str, float]:
    """What products may give, where the target computes some in float16, which does not hold all that float32 does."""
    if recipe.profile.forms.get(Precision.FP16) is not Form.COMPUTED:
        return {}
    channels = {site.key: seen.channels for site in bench.found.sites if (seen := ranges.values.get(site.input))}
    return largest_results(bench.prepared.graph, bench.found.sites, channels)
