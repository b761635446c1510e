"""Several files timed in turns: what there is to time, and what came of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spq_graph.documents.speed import Decode, Prefill, Speed, SpeedRow
from spq_graph.passes.files.read import size_of
from spq_graph.runtime.measures import timing
from spq_graph.runtime.proof.health import processor
from spq_graph.runtime.proof.held import runner_on
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.logits import Logits
from spq_graph.terms.rows import RowId
from spq_graph.terms.targets import PROFILES
from spq_graph.workbench.environment import environment
from spq_graph.workbench.steps import Tick


@dataclass(frozen=True, slots=True)
class Entry:
    """One model to be timed."""

    id: RowId
    path: Path
    target: str
    logits: Logits

    def open(self, threads: int) -> Runner:
        """A session over it, with so many threads.

        Raises:
            SpqError: what runs its target is not here, or cannot load the file.
        """
        return runner_on(PROFILES[self.target], self.path, threads=threads, logits=self.logits)


@dataclass(frozen=True, slots=True)
class Terms:
    """How models are timed.

    Attributes:
        lengths: of prompts, in tokens.
        past: tokens in the cache while decoding.
        rounds: how often each is timed, at most.
        threads: of every session.
        within: seconds after which no more than two rounds of each measurement begin.
    """

    lengths: Sequence[int]
    past: int
    rounds: int
    threads: int = 1
    within: float = math.inf


@dataclass(frozen=True, slots=True)
class Times:
    """What was taken of every model, by its name.

    Attributes:
        seconds: in every round, by measurement.
        loaded: what loading it in a process of its own took; empty where that was not tried.
    """

    seconds: timing.Seconds
    loaded: Mapping[str, timing.Loaded] = field(default_factory=dict)


def in_turns(runners: Mapping[str, Runner], terms: Terms, tick: Tick) -> timing.Seconds:
    """Time open models in turns; as `timing.in_turns`."""
    return timing.in_turns(runners, terms.lengths, terms.past, terms.rounds, tick, terms.within)


def summed_up(entries: Sequence[Entry], times: Times, terms: Terms) -> Speed:
    """Medians over the rounds; the first entry is what all ratios refer to."""
    first = times.seconds[entries[0].id.name]
    return Speed(
        threads=terms.threads,
        rounds=min(len(taken) for timed in times.seconds.values() for taken in timed.values()),
        past=terms.past,
        processor=processor(),
        environment=environment(),
        rows=[_row(entry, times, first, terms.lengths) for entry in entries],
    )


def _row(entry: Entry, times: Times, first: Mapping[str, list[float]], lengths: Sequence[int]) -> SpeedRow:
    """Medians over the rounds, beside the first model's."""
    loaded, timed = times.loaded.get(entry.id.name), times.seconds[entry.id.name]

    def prefill(label: str) -> Prefill:
        times, error = times_faster(first[label], timed[label])
        return Prefill(seconds=statistics.median(timed[label]), times=times, times_stderr=error)

    return SpeedRow(
        id=entry.id,
        target=entry.target,
        bytes=size_of(entry.path),
        load_seconds=round(loaded.seconds, 4) if loaded is not None else None,
        resident_bytes=loaded.resident_bytes if loaded is not None else None,
        prefill={str(n): prefill(f"prefill {n}") for n in lengths},
        decode=_decode(timed.get(timing.DECODE), first.get(timing.DECODE)),
    )


def _decode(timed: list[float] | None, first: list[float] | None) -> Decode | None:
    if timed is None:
        return None
    times, error = times_faster(first, timed) if first is not None else (None, None)
    return Decode(tokens_per_second=1 / statistics.median(timed), times=times, times_stderr=error)


def times_faster(first: Sequence[float], other: Sequence[float]) -> tuple[float, float | None]:
    """How many times faster the other was: median over the rounds, and its standard error; None of a single round."""
    ratios = [a / b for a, b in zip(first, other, strict=True)]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else None
    return statistics.median(ratios), error
