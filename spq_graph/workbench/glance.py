"""How fast what was made is beside its source, at a glance: short, so that every report can say it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from spq_graph.decisions.variants import Variant, decisions_of
from spq_graph.documents.plan import Plan
from spq_graph.documents.speed import Speed
from spq_graph.passes.files.read import size_of
from spq_graph.runtime.measures import timing
from spq_graph.runtime.proof.held import why_absent
from spq_graph.runtime.sessions.cores import cores
from spq_graph.runtime.sessions.memory import give_back_memory, installed
from spq_graph.terms.errors import GraphError, SpqError
from spq_graph.terms.rows import FP32, SPIKE_AWARE
from spq_graph.workbench.built import Built
from spq_graph.workbench.steps import Tick
from spq_graph.workbench.timed import Entry, Terms, Times, in_turns, summed_up
from spq_graph.workbench.workbench import Workbench

PROMPT, ROUNDS = 128, 5
# Seconds: what timing aims at, and a prompt that takes so long is not run again and again.
WITHIN, SLOW = 5.0, 10.0
# Bytes of files for which the source's stand: itself, what was made of it, and the rivals.
FILES = 2
# Bytes of a source's files up to which a session of it is opened at all: it holds every weight again, in the order that
# its products read, and quantizing takes no more memory than the weights do.
SOURCE_UP_TO = 2 << 30
# Bytes of a source's files up to which rivals are timed as well: each is a session more beside that of the source,
# which holds every weight twice.
RIVALS_UP_TO = 1 << 30
# What was seen of models from 1 to 135 million weights: a round of three, decoding too, in prompts of the source.
ROUND = 4.0
_BY_HAND = "`spq-graph bench OUT --against SOURCE --report` times it"


def speed_of(bench: Workbench, plan: Plan, built: Built, rivals: Sequence[Variant], seen: int) -> Speed | None:
    """Time what was made, and its rivals, in turns with the source: a prompt, and decoding, with one thread each.

    It takes seconds; where it would take more time or memory than that is worth, or fails, this is remarked and
    nothing else is lost.

    Args:
        bench: the source.
        plan: what was made.
        built: its file.
        rivals: what else might be chosen; those that decide what the plan does, or cannot be built, are left out, and
            all of them beside a large source.
        seen: tokens of a sequence that the model is known to take, where nothing says how many it takes.

    Returns:
        None where it was not timed, as where the target is not here.
    """
    if why_absent(plan.recipe.profile) is not None:
        return None
    if (why := why_not(size_of(bench.model), bench.memory)) is not None:
        bench.steps.remark(f"speed was not timed: {why}; {_BY_HAND}")
        return None
    others: list[tuple[Variant, Built]] = []
    try:
        with bench.steps.step("speed", "Timing it beside its source") as tick:
            if size_of(bench.model) <= RIVALS_UP_TO:
                others += _rivals(bench, plan, rivals)
            return _timed(bench, plan, built, others, terms_for(bench, seen), tick)
    except SpqError as error:
        bench.steps.remark(f"speed was not timed: {error.what}")
        return None
    finally:
        for _, file in others:
            file.discard()


def why_not(size: int, memory: int | None) -> str | None:
    """Why a model is not timed at a glance; None where it is.

    Args:
        size: of its files, in bytes.
        memory: bytes that the weights in a session may take; None for no limit.
    """
    if memory is not None and size > memory:
        return "a whole session takes more than --memory-limit"
    if size > SOURCE_UP_TO:
        return f"a session of the source takes as much memory again as its weights, {size / 1e9:.1f} GB"
    if FILES * size > installed() / 2:
        return f"sessions side by side take {FILES * size / 1e9:.1f} GB, of {installed() / 1e9:.1f} GB that there are"
    return None


def expected(size: int, memory: int | None, token: float, build: float) -> float:
    """Seconds that `speed_of` is expected to take.

    Args:
        size: of the source's files, in bytes.
        memory: as of `why_not`.
        token: seconds that a token of a prompt takes on all cores.
        build: seconds to build a rival.
    """
    prompt = PROMPT * token * cores()
    if why_not(size, memory) is not None or prompt > SLOW:
        return 0.0
    turn = ROUND * prompt
    counted = ROUNDS if turn * ROUNDS <= WITHIN else max(timing.FEWEST, int(WITHIN / turn))
    return build + prompt + (1 + counted) * turn


def _rivals(bench: Workbench, plan: Plan, rivals: Sequence[Variant]) -> Iterator[tuple[Variant, Built]]:
    different = {decisions_of(row.plan): row for row in rivals if decisions_of(row.plan) != decisions_of(plan)}
    for row in different.values():
        with suppress(GraphError):  # a format that this graph cannot have
            yield row, bench.build(row.plan)


def _timed(
    bench: Workbench, plan: Plan, built: Built, others: Sequence[tuple[Variant, Built]], terms: Terms, tick: Tick
) -> Speed | None:
    file = bench.model if bench.prepared.runs else bench.runner.path
    entries = [
        Entry(FP32, file, "cpu", bench.logits),
        *(Entry(row.id, other.path, row.plan.recipe.target, bench.logits) for row, other in others),
        Entry(SPIKE_AWARE, built.path, plan.recipe.target, bench.logits),
    ]
    give_back_memory()  # of what measured: sessions take as much again
    source = entries[0].open(terms.threads)
    if (took := timing.prefill(source, *terms.lengths)()) > SLOW:
        bench.steps.remark(f"speed was not timed: a prompt of {terms.lengths[0]} tokens takes {took:.0f} s; {_BY_HAND}")
        return None
    runners = {entry.id.name: entry.open(terms.threads) for entry in entries[1:]}
    return summed_up(entries, Times(in_turns({FP32.name: source, **runners}, terms, tick)), terms)


def terms_for(bench: Workbench, seen: int) -> Terms:
    """One prompt, and decoding behind as many tokens as leave room for one; as `speed_of`."""
    longest = bench.decoder.fixed_shape[1] or bench.known_length or max(2, seen)
    length = bench.decoder.fixed_shape[1] or min(PROMPT, longest)
    return Terms([length], min(length, longest - 1), ROUNDS, within=WITHIN)
