"""What the steps of a run take, from a small part of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from spq_graph.decisions.decide import decide
from spq_graph.documents.plan import Plan
from spq_graph.documents.recipe import Recipe
from spq_graph.runtime.generation.sample import BATCH
from spq_graph.runtime.measures.asked import Stream
from spq_graph.runtime.measures.judged import PART_BYTES, add_batch, reference_of
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.cache import Decoding
from spq_graph.runtime.sessions.memory import let_go
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Sequences, beginnings
from spq_graph.workbench.rates import SHORT, Rate, timed
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.tried import INTEGER, NOTHING, Tried, evaluated
from spq_graph.workbench.workbench import Workbench

# Tokens of what is tried: a pass of few tells what a pass takes at all, one of some what a token takes.
FEW, SOME = 32, 512
# What was seen of models from 1 to 135 million weights, in seconds to open the sessions of an evaluation: to build and
# prove the artifact, and to build and prove a row.
BUILD, ROW = 3.0, 1.5
# Likewise of a token that is observed, at most, in those of a pass: what else calibration takes, it takes at all.
OBSERVED = 1.2
# What a file takes to be made, written, opened and proved, however small it is: in turns of `turn`; and what an
# artifact takes more where it carries operators of ours, whose functions a session lays out.
FILE, OURS = 20.0, 60.0
_TURN, _TURNS = 100_000, 40


@dataclass(frozen=True, slots=True)
class Pilot:
    """What was timed, and what came of it.

    Attributes:
        reference: a pass of the model.
        calibrate: collecting ranges.
        tried: what evaluations take, and what they say; nothing without logits.
        row: building, opening and proving a row of the ladder, and running it.
        build: building and proving the artifact.
        ours: what the artifact takes more where it carries operators of ours.
        compared: seconds to hold what a model says of a token against what the source says.
        plan: by ratio, from the ranges of the small part.
        sites: how many count.
        candidates: sites whose ratio there makes them candidates.
    """

    reference: Rate
    calibrate: Rate
    tried: Tried
    row: Rate
    build: float
    ours: float
    compared: float
    plan: Plan
    sites: int
    candidates: int


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
        tried, compared = NOTHING, 0.0
        if bench.logits.output is not None:
            compared = _comparing(bench.decoder.vocabulary or 1)
            tried = evaluated(bench, recipe, ranges, keys, some, rate, compared, widths)
    opening, once = max(tried.everywhere.fixed, rate.fixed), turn()
    return Pilot(
        reference=rate,
        calibrate=Rate(max(0.0, calibrated - token * some.tokens), token),
        tried=tried,
        row=Rate(FILE * once + ROW * opening, INTEGER * rate.token),
        build=FILE * once + BUILD * opening,
        ours=OURS * once,
        compared=compared,
        plan=plan,
        sites=len(plan.counted),
        candidates=len(keys),
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
