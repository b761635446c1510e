"""Models that answer from a process of their own, whatever runs them: asked for logits, and timed two at a time."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.apart import ROOT, last_line
from spq_graph.runtime.sessions.passing import in_columns

SERVING = Path(__file__).with_name("serving.py")
STEPS = 8  # decoding steps in one measurement: a single one is shorter than what a clock and a scheduler disturb
Ids = npt.NDArray[np.int64]


class Served:
    """A model in a process of its own, as `serving.py` has it; scoring takes it for a stream of logits.

    Args:
        python: the engine's own.
        engine: of `serving.py`.
        path: the model.
        purpose: `judge` or `time`.
        threads: that it computes on.
        log: where its standard error goes.

    Attributes:
        load_seconds: of the processor, from opening the file to the end of a first prompt of one token.

    Raises:
        RuntimeError: it did not load; why, as it says it.
    """

    fixed_shape = (1, None)  # a row at a time: logits of several would take gigabytes
    vocabulary = None
    last_only = False

    def __init__(self, python: Path, engine: str, path: Path, purpose: str, threads: int, log: Path) -> None:
        self.path, self._log = path, log
        inherited = os.environ.get("PYTHONPATH")
        # Peers have nothing to do with what is here, and our folders have names that could be theirs.
        here = {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), inherited]))} if engine == "onnx" else {}
        one = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(python), str(SERVING), engine, str(path), str(threads), purpose],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | here | one,
            )
        self.load_seconds: float = self._told()["cpu_seconds"]

    def __enter__(self) -> Served:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.terminate()
        self._process.wait()

    def ask(self, **what: Any) -> dict[str, Any]:
        """Ask as the protocol of `serving.py` has it.

        Raises:
            RuntimeError: the process ended; why, as it says it.
        """
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said last tells why
        return self._told()

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError(f"failed: {last_line(self._log.read_text(errors='replace'))}")
        told: dict[str, Any] = json.loads(line)
        return told

    def logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Of every token of a row, float32 [tokens, vocabulary]."""
        shape = self.ask(do="logits", ids=[int(one) for one in ids])["shape"]
        assert self._process.stdout is not None
        return np.frombuffer(self._process.stdout.read(4 * shape[0] * shape[1]), dtype=np.float32).reshape(shape)

    def stream(
        self, batches: Sequence[tuple[Ids, Ids]], columns: int | None = None
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Logits of one batch after the other, float32 [batch, length, vocabulary]; ids and mask [batch, length].

        With `columns`, those of so many tokens of each row at a time.
        """
        for ids, mask in batches:
            found: npt.NDArray[np.float32] | None = None
            for number, (row, present) in enumerate(zip(ids, mask.astype(bool), strict=True)):
                logits = self.logits(row[present].tolist())
                if found is None:
                    found = np.zeros((*ids.shape, logits.shape[-1]), dtype=np.float32)
                found[number, present] = logits
            assert found is not None
            yield from in_columns(found, columns)


class Recorded:
    """Logits of one model on one text, computed once and kept in a file: another stream for scoring.

    Args:
        path: an array of numpy, float32 [rows, length, vocabulary], made where it is not there.
        model: what says them; asked only then.
        batches: the text, a row each; ids and mask int64 [1, length].
    """

    fixed_shape = (1, None)
    vocabulary = None
    last_only = False

    def __init__(self, path: Path, model: Callable[[], Served], batches: Sequence[tuple[Ids, Ids]]) -> None:
        self.path = path
        if not path.is_file():
            made = path.with_suffix(".making")
            with model() as served, made.open("wb") as file:
                for number, logits in enumerate(served.stream(batches)):
                    if not number:
                        header = {"descr": "<f4", "fortran_order": False, "shape": (len(batches), *logits.shape[1:])}
                        np.lib.format.write_array_header_1_0(file, header)
                    logits.tofile(file)
            made.replace(path)
        self._logits = np.load(path, mmap_mode="r")

    def stream(
        self, batches: Sequence[tuple[Ids, Ids]], columns: int | None = None
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Those of the same text, a row at a time, float32 [1, length, vocabulary]; or so many tokens of one."""
        rows = (self._logits[number : number + 1] for number in range(len(batches)))
        return (np.array(part) for row in rows for part in in_columns(row, columns))


def in_pairs(
    base: Served, other: Served, lengths: Sequence[int], past: int, vocabulary: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Time two models in turns, so that a slow moment slows both; medians over rounds, after one that is not counted.

    On one thread the processor's time is that of the clock, but for what neighbours on the machine take of it.

    Returns:
        By "prefill N" and "decode": `milliseconds` of the other and `base_milliseconds`, of the processor; `over_fp32`,
        the median of how many times faster it was in each round; and `over_fp32_by_clock`.
    """
    ids = np.random.default_rng(0).integers(0, vocabulary, max(*lengths, past)).tolist()
    asked = {f"prefill {length}": {"do": "prefill", "ids": ids[:length]} for length in lengths}
    asked["decode"] = {"do": "decode", "ids": ids[:past], "steps": STEPS}
    found: dict[str, dict[str, float]] = {}
    for label, what in asked.items():
        turns = [(base.ask(**what), other.ask(**what)) for _ in range(rounds + 1)][1:]
        found[label] = {
            "milliseconds": 1e3 * statistics.median(taken["cpu_seconds"] for _, taken in turns),
            "base_milliseconds": 1e3 * statistics.median(taken["cpu_seconds"] for taken, _ in turns),
            "over_fp32": statistics.median(before["cpu_seconds"] / taken["cpu_seconds"] for before, taken in turns),
            "over_fp32_by_clock": statistics.median(before["seconds"] / taken["seconds"] for before, taken in turns),
        }
    return found
