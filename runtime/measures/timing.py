"""Prefill, decoding, loading and memory of several models, in turns, so that a slow moment slows all of them.

As a program (`python -m spq_graph.runtime.measures.timing FILE TARGET THREADS`) it loads one model in a process of
its own and prints what that took, since memory that was given back is not seen from within.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spq_graph.documents.json_text import json_text
from spq_graph.runtime.measures.finite import not_finite
from spq_graph.runtime.proof.held import runner_on
from spq_graph.runtime.sessions.feeds import Array
from spq_graph.runtime.sessions.memory import resident
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Ids
from spq_graph.terms.errors import ActivationError, GraphError, SpqError
from spq_graph.terms.targets import PROFILES

Seconds = dict[str, dict[str, list[float]]]
STEPS = 8  # decoding steps in one measurement: a single one is shorter than what a clock and a scheduler disturb
FEWEST = 2  # rounds that are counted, however long they take
DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading a model took: seconds, and resident bytes that it added once it had run a prompt."""

    seconds: float
    resident_bytes: int


def prefill(runner: Runner, length: int) -> Callable[[], float]:
    """A measurement of one prompt of that many tokens, in seconds; of a short one the mean of several."""
    ids, mask = _prompt(runner, length)
    count = 1 if length > STEPS else STEPS

    def once() -> float:
        start = time.perf_counter()
        for _ in range(count):
            runner.run(ids, mask)
        return (time.perf_counter() - start) / count

    return once


def decoding(runner: Runner, past: int) -> Callable[[], float] | None:
    """A measurement of one token behind so many in the cache, in seconds; None where the graph has no cache."""
    rows, length = runner.fixed_shape
    if length is not None or not (empty := runner.empty_past(rows or 1, 1)):
        return None
    generator = np.random.default_rng(0)
    cache = {name: _filled(array, past, generator) for name, array in empty.items()}
    ids, _ = _prompt(runner, 1)
    feeds = runner.token_feeds(ids, np.ones((len(ids), past + 1), dtype=np.int64)) | cache

    def once() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            runner.session.run(runner.outputs, feeds)
        return (time.perf_counter() - start) / STEPS

    return once


def require_finite(runner: Runner, length: int) -> None:
    """Refuse a model whose logits on a prompt of random tokens are not finite: how fast that is, is nobody's question.

    Raises:
        ActivationError: one of them is NaN or infinite.
    """
    logits = runner.logits(*_prompt(runner, length))
    if not_finite(logits.reshape(-1, logits.shape[-1]))[0].any():
        raise ActivationError(
            "the logits are NaN or infinite on random tokens",
            where=str(runner.path),
            remedy="`spq-graph eval` on this file and a text says in which of its nodes that begins",
        )


def _prompt(runner: Runner, length: int) -> tuple[Ids, Ids]:
    """Random tokens and their mask, int64 [batch, length] both: one row, or as many as the graph insists on."""
    ids = np.random.default_rng(length).integers(0, runner.vocabulary or 2, (1, length))
    return runner.filled(ids, np.ones_like(ids))


def _filled(empty: Array, past: int, generator: np.random.Generator) -> Array:
    shape = [size or past for size in empty.shape]
    return (generator.standard_normal(shape) * 0.1).astype(empty.dtype)


def in_turns(
    runners: Mapping[str, Runner],
    lengths: Sequence[int],
    past: int,
    rounds: int,
    tick: Callable[[int, int], None],
    within: float = math.inf,
) -> Seconds:
    """Time every model once in every round, after one round that is not counted.

    Args:
        runners: the models, by name.
        lengths: of prompts, in tokens.
        past: tokens in the cache while decoding.
        rounds: how often each is timed, at most.
        tick: takes how many rounds are over, and of how many.
        within: seconds in which no more than two rounds of each measurement begin.

    Returns:
        By model, and by "prefill N" or "decode", the seconds of each round.

    Raises:
        GraphError: a model cannot take a prompt of these lengths.
    """
    found: Seconds = {name: {} for name in runners}
    tests: list[tuple[str, dict[str, Callable[[], float]]]] = [
        (f"prefill {length}", {name: prefill(runner, length) for name, runner in runners.items()}) for length in lengths
    ]
    steps = {name: once for name, runner in runners.items() if (once := decoding(runner, past)) is not None}
    total = (rounds + 1) * (len(tests) + 1)
    for done, (label, measurements) in enumerate([*tests, (DECODE, steps)]):
        begun = time.perf_counter()
        for turn in range(rounds + 1):
            if turn > FEWEST and time.perf_counter() - begun > within / (len(tests) + 1):
                break
            for name, once in measurements.items():
                seconds = once()
                if turn:
                    found[name].setdefault(label, []).append(seconds)
            tick(done * (rounds + 1) + turn + 1, total)
    tick(total, total)
    return found


def load_apart(path: Path, target: str, threads: int) -> Loaded:
    """Load a model in a process of its own.

    Raises:
        GraphError: that process failed.
    """
    command = [sys.executable, "-m", "spq_graph.runtime.measures.timing", str(path), target, str(threads)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        reason = ran.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise GraphError(
            f"the model did not load in a process of its own: {reason[0]}",
            where=str(path),
            remedy="`spq-graph doctor` says what runs here; one that said nothing ran out of memory, so free some",
        )
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return Loaded(found["seconds"], found["resident_bytes"])


def _main(path: str, target: str, threads: str) -> None:
    profile = PROFILES[target]
    if profile.runtime == "openvino":
        import openvino  # noqa: F401 - what the runtime itself takes is not the model's
    before, start = resident(), time.perf_counter()
    runner = runner_on(profile, Path(path), threads=int(threads))
    seconds = time.perf_counter() - start
    ids = np.zeros((1, runner.fixed_shape[1] or 16), dtype=np.int64)
    runner.run(*runner.filled(ids, np.ones_like(ids)))
    print(json_text({"seconds": seconds, "resident_bytes": resident() - before}, "timing", indent=None))


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:4])
    except SpqError as error:
        sys.exit(error.what)  # the one line that is told
