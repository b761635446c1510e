"""What the steps of a run take, from a small part of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from spq_graph.decisions.decide import decide
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.runtime.generation.sample import BATCH
from spq_graph.runtime.measures.asked import Stream
from spq_graph.runtime.measures.calibrate import batch_size
from spq_graph.runtime.measures.evaluate import score_text
from spq_graph.runtime.sessions.cache import Decoding
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.precision import Precision
from spq_graph.workbench.meter import beginnings, meter
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench

_T = TypeVar("_T")
# A pass over so many seconds' worth of tokens is short enough.
SHORT = 0.5
FEW = 32


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds that something takes at all, and for each token."""

    fixed: float
    token: float

    def of(self, tokens: int) -> float:
        """Seconds for so many tokens."""
        return self.fixed + self.token * tokens


@dataclass(frozen=True, slots=True)
class Pilot:
    """What was timed, and what came of it.

    Attributes:
        reference: a pass of the model.
        calibrate: collecting ranges.
        everywhere: an evaluation with all sites in integers; alone: with one of them; nothing without logits.
        row: building, opening and proving a row of the ladder, and measuring it.
        build: building and proving the artifact.
        plan: by ratio, from the ranges of the small part.
        candidates: sites whose ratio there makes them candidates.
        kl: with all sites in integers; 0 without logits.
    """

    reference: Rate
    calibrate: Rate
    everywhere: Rate
    alone: Rate
    row: Rate
    build: float
    plan: Plan
    candidates: int
    kl: float


def fly(bench: Workbench, recipe: Recipe, sequences: Sequences) -> Pilot:
    """Take a small part of every step; what is shown of steps is not heard, and files are removed.

    Args:
        bench: the model.
        recipe: what is wanted.
        sequences: of the length, and if possible the kind, that will be run; few of them are.

    Raises:
        SpqError: as the steps.
    """
    with _quiet(bench):
        some, rate = _some(bench, sequences)
        ranges, calibrated = timed(lambda: bench.calibrate(some))
        token = min(rate.token * 1.2, calibrated / some.tokens)
        plan = decide(bench.found.every, ranges, recipe, bench.ref, stored=bench.stored, held=bench.found.held)
        everywhere, alone, kl = Rate(0.0, 0.0), Rate(0.0, 0.0), 0.0
        if bench.logits.output is not None:
            everywhere, alone, kl = _evaluations(bench, recipe, ranges, some)
        build, row = _row(bench, plan, some, rate)
    return Pilot(
        reference=rate,
        calibrate=Rate(max(0.0, calibrated - token * some.tokens), token),
        everywhere=everywhere,
        alone=alone,
        row=row,
        build=build,
        plan=plan,
        candidates=sum(
            s.evidence.ratio is not None and s.evidence.ratio > recipe.candidate_ratio for s in plan.counted
        ),
        kl=kl,
    )


def sampling(bench: Workbench, sequences: int, length: int, token: float) -> float:
    """Seconds to sample text from the model itself.

    Args:
        bench: the model.
        sequences: how many.
        length: tokens in each.
        token: seconds that a pass takes for each token.
    """
    if bench.source.kind == "folder":
        from spq_graph.models.sample import seconds_to_sample

        return seconds_to_sample(bench.source.path, sequences=sequences, length=length)
    runner = bench.runner
    rows = runner.fixed_shape[0] or min(BATCH, sequences)
    state = Decoding(runner, rows)
    if not state.cached:  # every token runs all before it again
        return sequences * length * (length + 1) / 2 * token
    before = int(np.clip(SHORT / (token * rows), 1, max(1, length // 2)))
    state.feed(np.zeros((rows, before), dtype=np.int64))
    steps = [timed(partial(state.feed, np.zeros((rows, 1), dtype=np.int64)))[1] for _ in range(4)]
    return -(-sequences // rows) * length * float(np.median(steps))


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """What work gives, and the seconds that it took."""
    start = time.perf_counter()
    found = work()
    return found, time.perf_counter() - start


@contextmanager
def _quiet(bench: Workbench) -> Iterator[None]:
    told, bench.steps = bench.steps, Steps()
    try:
        yield
    finally:
        bench.steps = told


def _some(bench: Workbench, sequences: Sequences) -> tuple[Sequences, Rate]:
    """As many tokens as tell what a token takes, a batch at most, and what a pass takes at all and for each.

    A model in pieces opens each of them for every pass, and a handful of tokens tells little of many, of which a
    product reads its weight once: they grow until what was added takes long enough to tell. Of two passes the faster
    counts; the other paid for what is done once.
    """
    reference, (rows, length) = bench.reference, sequences.ids.shape
    free = reference.fixed_shape[1] is None
    most = min(rows, batch_size(reference, sequences)) * length
    few = some = beginnings(sequences, 1, FEW if free else length)
    short = seconds = min(timed(partial(_pass, reference, few))[1] for _ in range(2))
    while some.ids.size < most and seconds - short < SHORT / 2 and seconds < 4 * SHORT:
        tokens = min(most, 4 * some.ids.size)
        some = beginnings(sequences, max(1, tokens // length), min(length, tokens) if free else length)
        seconds = min(timed(partial(_pass, reference, some))[1] for _ in range(2))
    return some, _rate(few.tokens, short, some.tokens, seconds)


def _rate(few: int, short: float, many: int, long: float) -> Rate:
    """From what few tokens take and what many do."""
    token = max(0.0, long - short) / (many - few) if many > few else long / many
    return Rate(max(0.0, long - token * many), token)


def _pass(stream: Stream, sequences: Sequences) -> None:
    for _ in stream.stream([(sequences.ids, sequences.mask)]):
        pass


def _evaluations(bench: Workbench, recipe: Recipe, ranges: Ranges, some: Sequences) -> tuple[Rate, Rate, float]:
    """An evaluation with all sites in integers and one with a single one, and the KL of the former."""
    sites = [s for s in bench.found.sites if s.input in ranges.values and not s.left_alone(recipe.quantize_lm_head)]
    all_of_them = dict.fromkeys((s.key for s in sites), Precision.integer(recipe.bits))
    single = dict(list(all_of_them.items())[:1])

    def seconds(on: Sequences, precisions: Mapping[str, Precision]) -> tuple[float, float]:
        asked = recipe.model_copy(update={"sensitivity_tokens": on.tokens})
        return timed(partial(meter(bench, on, asked, ranges, lambda: None).whole.kl, precisions))

    few = beginnings(some, 1, FEW) if bench.reference.fixed_shape[1] is None else some
    seconds(few, single)  # pays for what is done once
    _, alone = seconds(some, single)
    kl, everywhere = seconds(some, all_of_them)
    _, short = seconds(few, all_of_them)
    rate = _rate(few.tokens, short, some.tokens, everywhere)
    return rate, Rate(rate.fixed, max(0.0, alone - rate.fixed) / some.tokens), kl


def _row(bench: Workbench, plan: Plan, some: Sequences, reference: Rate) -> tuple[float, Rate]:
    """Seconds to build and prove an artifact, and what a row of the ladder takes.

    The artifact is the first that a run builds, and pays for what is done once; of rows there are many, so that one
    that is over soon is tried again to see what they take from then on.
    """
    first = _one_row(bench, plan, some, reference)
    return first.fixed, _one_row(bench, plan, some, reference) if first.of(some.tokens) < 2 * SHORT else first


def _one_row(bench: Workbench, plan: Plan, some: Sequences, reference: Rate) -> Rate:
    built, build = timed(lambda: bench.build(plan, profile=bench.measured_as(plan)))
    stream, opened = timed(lambda: bench.stream_for(plan, built))
    measured = 0.0
    if bench.logits.output is not None:
        _, measured = timed(lambda: score_text(bench.reference, [stream], some))
    _, proved = timed(lambda: None if bench.emulates(plan) else bench.prove(built, plan, stream))
    built.discard()
    token = max(0.0, measured - reference.of(some.tokens)) / some.tokens
    return Rate(build + opened + proved, token)
