"""Prefill, decoding, loading and memory of several models, in turns, so that a slow moment slows all of them.

As a program (`python -m spq_graph.runtime.measures.timing FILE TARGET THREADS`) it loads one model in a process of
its own and prints what that took, since memory that was given back is not seen from within.
"""

from __future__ import annotations

import json
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
DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What loading a model took: seconds, and resident bytes that it added once it had run a prompt."""

    seconds: float
    resident_bytes: int


def prefill(runner: Runner, length: int) -> Callable[[], float]:
    """A measurement of one prompt of that many tokens, in seconds; of a short one the mean of several."""
    ids = _ids(runner, length)
    mask = np.ones_like(ids)
    count = 1 if length > STEPS else STEPS

    def once() -> float:
        start = time.perf_counter()
        for _ in range(count):
            runner.run(ids, mask)
        return (time.perf_counter() - start) / count

    return once


def decoding(runner: Runner, past: int) -> Callable[[], float] | None:
    """A measurement of one token behind so many in the cache, in seconds; None where the graph has no cache."""
    empty = runner.empty_past(1, 1)
    if not empty or runner.fixed_shape[1] is not None:
        return None
    generator = np.random.default_rng(0)
    cache = {name: _filled(array, past, generator) for name, array in empty.items()}
    feeds = runner.token_feeds(_ids(runner, 1), np.ones((1, past + 1), dtype=np.int64)) | cache

    def once() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            runner.session.run(runner.outputs, feeds)
        return (time.perf_counter() - start) / STEPS

    return once


def _refuse_not_finite(runner: Runner, length: int) -> None:
    ids = _ids(runner, length)
    logits = runner.logits(ids, np.ones_like(ids))
    if not_finite(logits.reshape(-1, logits.shape[-1]))[0].any():
        raise ActivationError(
            "the logits are NaN or infinite on random tokens",
            where=str(runner.path),
            remedy="`spq-graph eval` on this file and a text says in which of its nodes that begins",
        )


def _ids(runner: Runner, length: int) -> Ids:
    return np.random.default_rng(length).integers(0, runner.vocabulary or 2, (1, length))


def _filled(empty: Array, past: int, generator: np.random.Generator) -> Array:
    shape = [size or past for size in empty.shape]
    return (generator.standard_normal(shape) * 0.1).astype(empty.dtype)


def in_turns(
    runners: Mapping[str, Runner], lengths: Sequence[int], past: int, rounds: int, tick: Callable[[int, int], None]
) -> Seconds:
    """Time every model once in every round, after one round that is not counted.

    Returns:
        By model, and by "prefill N" or "decode", the seconds of each round.

    Raises:
        GraphError: a model cannot take a prompt of these lengths.
        ActivationError: the logits of one are NaN or infinite: how fast that is, is nobody's question.
    """
    for runner in runners.values():
        _refuse_not_finite(runner, min(lengths))
    found: Seconds = {name: {} for name in runners}
    tests: list[tuple[str, dict[str, Callable[[], float]]]] = [
        (f"prefill {length}", {name: prefill(runner, length) for name, runner in runners.items()}) for length in lengths
    ]
    steps = {name: once for name, runner in runners.items() if (once := decoding(runner, past)) is not None}
    done, total = 0, (rounds + 1) * (len(tests) + 1)
    for label, measurements in [*tests, (DECODE, steps)]:
        for turn in range(rounds + 1):
            for name, once in measurements.items():
                seconds = once()
                if turn:
                    found[name].setdefault(label, []).append(seconds)
            done += 1
            tick(done, total)
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
