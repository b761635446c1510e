"""What the steps of a run take, from a small part of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from spq_graph.decisions.decide import decide
from spq_graph.decisions.effort import all_by_token
from spq_graph.documents.changes import Peel
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.runtime.generation.sample import BATCH
from spq_graph.runtime.measures.asked import Stream
from spq_graph.runtime.measures.judged import PART_BYTES, add_batch, reference_of
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.cache import Decoding
from spq_graph.runtime.sessions.memory import let_go
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Sequences, beginnings
from spq_graph.terms.precision import Precision
from spq_graph.workbench.meter import meter
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench

_T = TypeVar("_T")
# Seconds: what is over sooner is tried again; and sampling behind so much of a text tells of sampling in its middle.
SHORT = 0.5
# Tokens of what is tried: a pass of few tells what a pass takes at all, one of some what a token takes, and evaluations
# take fewer than that, since most of what they take is to open sessions.
FEW, SOME, EVALUATED = 32, 512, 128
# What was seen of models from 1 to 135 million weights: seconds of a product in integers in those of float32; and in
# seconds to open the sessions of an evaluation, to build and prove the artifact, and to build and prove a row.
INTEGER, BUILD, ROW = 0.7, 3.0, 1.5
# Likewise of a token that is observed, at most, in those of a pass: what else calibration takes, it takes at all.
OBSERVED = 1.2
# What a file takes to be made, written, opened and proved, however small it is: in turns of `turn`; and what an
# artifact takes more where it carries operators of ours, whose functions a session lays out.
FILE, OURS = 20.0, 60.0
_TURN, _TURNS = 100_000, 40


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds that something takes at all, and for each token."""

    fixed: float
    token: float

    def of(self, tokens: int) -> float:
        """Seconds for so many tokens."""
        return self.fixed + self.token * tokens

    def times(self, fixed: float, token: float) -> Rate:
        """Of something that takes so many times as long at all, and for each token."""
        return Rate(self.fixed * fixed, self.token * token)


@dataclass(frozen=True, slots=True)
class Losses:
    """KL at one bit width, nats a token; infinite where nobody could tell.

    Attributes:
        everywhere: with all sites in integers.
        kept: with all of them but the candidates.
        by_token: with scales by token and the most channels in branches; None where that was not tried.
    """

    everywhere: float
    kept: float
    by_token: float | None = None


@dataclass(frozen=True, slots=True)
class Pilot:
    """What was timed, and what came of it.

    Attributes:
        reference: a pass of the model.
        calibrate: collecting ranges.
        everywhere: an evaluation with all sites in integers; nothing without logits.
        alone: with one candidate of them, in the middle of what is there; nothing without logits.
        row: building, opening and proving a row of the ladder, and running it.
        build: building and proving the artifact.
        ours: what the artifact takes more where it carries operators of ours.
        compared: seconds to hold what a model says of a token against what the source says.
        plan: by ratio, from the ranges of the small part.
        sites: how many count.
        candidates: sites whose ratio there makes them candidates.
        losses: by bit width; nothing without logits.
    """

    reference: Rate
    calibrate: Rate
    everywhere: Rate
    alone: Rate
    row: Rate
    build: float
    ours: float
    compared: float
    plan: Plan
    sites: int
    candidates: int
    losses: Mapping[int, Losses]


def fly(bench: Workbench, recipe: Recipe, sequences: Sequences, widths: Sequence[int]) -> Pilot:
    """Take a small part of every step; what is shown of steps is not heard, and nothing is written.

    It takes about as long as half a pass over 16,384 tokens, so that a run can begin with it.

    Args:
        bench: the model.
        recipe: what is wanted.
        sequences: of the length, and if possible the kind, that will be run; few of them are.
        widths: in bits, at which a decision is to come.

    Raises:
        SpqError: as the steps.
    """
    with _quiet(bench):
        some, rate = _some(bench, sequences)
        let_go()
        ranges, calibrated = timed(lambda: bench.calibrate(some))
        let_go()
        token = min(OBSERVED * rate.token, calibrated / some.tokens)
        plan = decide(bench.found.every, ranges, recipe, bench.ref, stored=bench.stored, held=bench.found.held)
        keys = [s.key for s in plan.counted if (s.evidence.ratio or 0.0) > recipe.candidate_ratio]
        everywhere, alone, losses, compared = Rate(0.0, 0.0), Rate(0.0, 0.0), dict[int, Losses](), 0.0
        if bench.logits.output is not None:
            compared = _comparing(bench.decoder.vocabulary or 1)
            everywhere, alone, losses = _evaluations(bench, recipe, ranges, keys, some, rate, compared, widths)
    opening, once = max(everywhere.fixed, rate.fixed), turn()
    return Pilot(
        reference=rate,
        calibrate=Rate(max(0.0, calibrated - token * some.tokens), token),
        everywhere=everywhere,
        alone=alone,
        row=Rate(FILE * once + ROW * opening, INTEGER * rate.token),
        build=FILE * once + BUILD * opening,
        ours=OURS * once,
        compared=compared,
        plan=plan,
        sites=len(plan.counted),
        candidates=len(keys),
        losses=losses,
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


def turn() -> float:
    """Seconds of a little work in Python, on average: a machine with other work gives some turns, and others not."""
    return timed(lambda: [sum(map(float, range(_TURN))) for _ in range(_TURNS)])[1] / _TURNS


@contextmanager
def _quiet(bench: Workbench) -> Iterator[None]:
    told, bench.steps = bench.steps, Steps()
    try:
        yield
    finally:
        bench.steps = told
        let_go()


def _comparing(vocabulary: int) -> float:
    """Seconds to compare logits over so large a vocabulary with the source's, for each token."""
    rows = max(1, PART_BYTES // (4 * vocabulary))
    logits = np.random.default_rng(0).standard_normal((rows, vocabulary), dtype=np.float32)
    targets = np.zeros(rows, dtype=np.int64)
    reference = reference_of(logits, targets)
    return min(timed(partial(add_batch, Score(), logits, reference))[1] for _ in range(3)) / rows


def _some(bench: Workbench, sequences: Sequences) -> tuple[Sequences, Rate]:
    """Some tokens, and what a pass takes at all and for each token: from one of few tokens, and one of these."""
    reference, length = bench.reference, sequences.ids.shape[1]
    free = reference.fixed_shape[1] is None
    rows = max(1, min(len(sequences), SOME // length))
    some = beginnings(sequences, rows, min(length, SOME) if free else length)
    few = beginnings(sequences, 1, FEW if free else length)
    if isinstance(reference, Runner):  # it is opened once, and pays in its first pass for what is done once
        _pass(reference, some)
    short, long = (_least(partial(_pass, reference, one)) for one in (few, some))
    return some, _rate(few.tokens, short, some.tokens, long)


def _least(work: Callable[[], object]) -> float:
    """Seconds of work, which is done again where that is soon over: their difference is to tell what a token takes."""
    seconds = timed(work)[1]
    return min(seconds, timed(work)[1], timed(work)[1]) if seconds < SHORT else seconds


def _rate(few: int, short: float, many: int, long: float) -> Rate:
    """From what few tokens take and what many do."""
    token = max(0.0, long - short) / (many - few) if many > few else long / many
    return Rate(max(0.0, long - token * many), token)


def _pass(stream: Stream, sequences: Sequences) -> None:
    for _ in stream.stream([(sequences.ids, sequences.mask)]):
        pass


def _evaluations(
    bench: Workbench,
    recipe: Recipe,
    ranges: Ranges,
    candidates: Sequence[str],
    some: Sequences,
    rate: Rate,
    compared: float,
    widths: Sequence[int],
) -> tuple[Rate, Rate, dict[int, Losses]]:
    """An evaluation with all sites in integers and one with a single one; what the former costs at every width.

    A candidate in the middle of all stands for each: it is run from where the graph first differs, so that on average
    half of it is not.
    """
    sites = [s for s in bench.found.sites if s.input in ranges.values and not s.left_alone(recipe.quantize_lm_head)]
    counted = [s.key for s in sites]
    all_of_them = dict.fromkeys(counted, Precision.integer(recipe.bits))
    keys = candidates or list(all_of_them)
    single = {keys[len(keys) // 2]: Precision.integer(recipe.bits)}
    on = some
    if bench.reference.fixed_shape[1] is None:
        on = beginnings(some, None, max(2, EVALUATED // len(some)))
    asked = recipe.model_copy(update={"sensitivity_tokens": on.tokens})
    measure = meter(bench, on, asked, ranges, lambda _: None).whole

    def taken(precisions: Mapping[str, Precision], token: float) -> tuple[float, Rate]:
        kl, seconds = timed(partial(measure.kl, precisions))
        if seconds < SHORT or len(precisions) > 1:  # what is done once would be much of it: encoding all weights is
            seconds = min(seconds, timed(partial(measure.kl, precisions))[1])
        return kl, Rate(max(0.0, seconds - (token + compared) * on.tokens), token + compared)

    known, everywhere = taken(all_of_them, INTEGER * rate.token)

    def losses(bits: int) -> Losses:
        kl = known if bits == recipe.bits else measure.kl(dict.fromkeys(counted, Precision.integer(bits)))
        beside = dict.fromkeys((key for key in counted if key not in candidates), Precision.integer(bits))
        kept = measure.kl(beside) if candidates and kl > recipe.kl_aim else kl
        asked = recipe.model_copy(update={"bits": bits})
        by_token = kept > recipe.kl_budget and asked.may_scale_by_token
        return Losses(kl, kept, measure.kl(*_by_token(bench, asked, ranges)) if by_token else None)

    return everywhere, taken(single, rate.token / 2)[1], {bits: losses(bits) for bits in widths}


def _by_token(bench: Workbench, recipe: Recipe, ranges: Ranges) -> tuple[dict[str, Precision], dict[str, Peel]]:
    """Everything with scales by token, and a branch of the most channels wherever one is worth it."""
    recipe = all_by_token(recipe)
    plan = decide(bench.found.every, ranges, recipe, bench.ref, stored=bench.stored, held=bench.found.held)
    return {site.key: site.precision for site in plan.counted}, plan.peels
