"""A LLaMA of SmolLM2-135M's shape from end to end: made and quantized on the machine, against itself in float16.

Weights are random, so that nothing need be carried: speed does not depend on them. Inputs and outputs stay on the
device; rounds take turns through all files, and a ratio is the median of the ratios within a round.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.gpu.checked import as_on_target, ran
from benchmarks.gpu.place import Place
from benchmarks.shaped import SHAPES, Shape, write
from spq_graph import Opening, Recipe
from spq_graph.documents.leftovers import temporary_folder
from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.runtime.measures.timing import DECODE
from spq_graph.runtime.proof.held import check_executed
from spq_graph.runtime.sessions.session import Runner
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.workbench.planning import make_plan

LENGTHS, PAST, ROUNDS, REPEATS = (128, 512, 2048), 512, 7, 10
CALIBRATED = (2, 64)  # sequences and tokens
Array = np.ndarray[Any, Any]
Found = dict[str, Any]
Record = Callable[[Found], None]


def _int8(site: SitePlan) -> Precision:
    return site.precision


def _all(precision: Precision) -> Callable[[SitePlan], Precision]:
    return lambda site: precision if site.precision is Precision.INT8 else site.precision


def _spike_aware(site: SitePlan) -> Precision:
    return Precision.FP8_E4M3 if site.role is Role.GLU_DOWN else site.precision


SOURCE = "fp16"
# Files beside the source, and what their sites become. A real model keeps far fewer down projections than all.
FILES: Mapping[str, Callable[[SitePlan], Precision]] = {
    "int8": _int8,
    "int8, down projections in fp8_e4m3": _spike_aware,
    "fp8_e4m3": _all(Precision.FP8_E4M3),
    "w8a16": _all(Precision.W8A16),
}


def shape_of(where: Place) -> Shape:
    """What is made; of a stand-in less of it."""
    whole = SHAPES["smollm2-135m"]
    return (
        replace(whole, layers=2, hidden=64, intermediate=128, heads=4, kv_heads=2, vocabulary=256)
        if where.stands_in
        else whole
    )


def entire(where: Place, record: Record) -> Found:
    """Prompts and decoding of every file; of one without a cache prompts alone, where the device has no such attention.

    Raises:
        Exception: whatever keeps the source itself from being made or run.
    """
    for cache in (True, False):
        try:
            with temporary_folder() as folder:
                return _entire(replace(shape_of(where), cache=cache), folder, where, record)
        except Exception as error:  # whatever it is, prompts may be left
            if not cache:
                raise
            traceback.print_exc()
            record({"with a cache": False, "why": f"{type(error).__name__}: {str(error)[:1500]}"})
    raise AssertionError("one of the two returns or raises")


def _entire(shape: Shape, folder: Path, where: Place, record: Record) -> Found:
    start = time.monotonic()
    source = write(shape, folder / "source.onnx")
    ids = np.random.default_rng(0).integers(0, shape.vocabulary, CALIBRATED)
    runners = {SOURCE: Runner(source, provider=where.provider)}
    mask = np.ones_like(ids)
    floating = runners[SOURCE].logits(ids, mask)
    with Opening(source).open() as bench:
        ranges = bench.calibrate(Sequences(ids, mask, 0, "random"))
        base = make_plan(bench, Recipe(spike_ratio=1e9, target="cuda"), 8, ranges, None)
        for name, precision_of in FILES.items():
            plan = base.with_precisions(precision_of)
            try:
                file = bench.build(plan, folder / f"{len(runners)}.onnx")
                found = _proved(file.path, plan, ids[:1], where)
                runners[name] = Runner(file.path, provider=where.provider)
                found["relative_l2"] = _difference(runners[name].logits(ids, mask), floating)
            except Exception as error:  # the other files are measured all the same
                traceback.print_exc()
                runners.pop(name, None)
                found = {"why": f"{type(error).__name__}: {str(error)[:1500]}"}
            record({"file": name, "since_start": round(time.monotonic() - start, 1), **found})
    lengths = LENGTHS[:1] if where.stands_in else LENGTHS
    cases = {f"prefill {length}": (length, 0) for length in lengths} | ({DECODE: (1, PAST)} if shape.cache else {})
    for label, (new, past) in cases.items():
        for row in _timed(runners, new, past, where):
            record({"case": label, **row})
    if len(runners) <= len(FILES):
        raise SystemExit(f"not all files ran: {', '.join(runners)} did")
    return {"shape": {name: getattr(shape, name) for name in shape.__dataclass_fields__}, "past": PAST}


def _proved(path: Path, plan: Plan, ids: Array, where: Place) -> Found:
    """That a file's sites ran as planned, and what was left to other providers."""
    executed, others = ran(path, ids, where)
    check_executed(as_on_target(executed, where), plan, str(path))
    return {"ops": executed.ops, "left_to_others": others, "bytes": _bytes(path)}


def _bytes(path: Path) -> int:
    return sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))


def _difference(logits: Array, wanted: Array) -> float:
    return float(np.linalg.norm(logits - wanted) / np.linalg.norm(wanted))


@dataclass(slots=True)
class Bound:
    """A session with its inputs on the device, and its outputs left there."""

    runner: Runner
    binding: Any

    @classmethod
    def of(cls, runner: Runner, new: int, past: int, where: Place) -> Bound:
        """One sequence of random tokens, behind so many in the cache."""
        ids = np.random.default_rng(new).integers(0, runner.vocabulary or 2, (1, new))
        feeds = runner.token_feeds(ids, np.ones((1, past + new), np.int64))
        for name, empty in runner.empty_past(1, new).items():
            size = [length or past for length in empty.shape]
            feeds[name] = (np.random.default_rng(0).standard_normal(size) * 0.1).astype(empty.dtype)
        binding = runner.session.io_binding()
        for name, array in feeds.items():
            if array.size:
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, where.device, 0))
            else:
                binding.bind_cpu_input(name, array)  # a device need not be asked for no memory at all
        for output in runner.session.get_outputs():
            binding.bind_output(output.name, where.device, 0)
        return cls(runner, binding)

    def seconds(self) -> float:
        """What one run takes."""
        start = time.perf_counter()
        for _ in range(REPEATS):
            self.runner.session.run_with_iobinding(self.binding)
        return (time.perf_counter() - start) / REPEATS


def _timed(runners: Mapping[str, Runner], new: int, past: int, where: Place) -> list[Found]:
    """Every file in every round, after one that is not counted."""
    bound = {name: Bound.of(runner, new, past, where) for name, runner in runners.items()}
    taken: dict[str, list[float]] = {name: [] for name in bound}
    for turn in range(ROUNDS + 1):
        for name, one in bound.items():
            seconds = one.seconds()
            if turn:
                taken[name].append(seconds)
    return [
        {
            "file": name,
            "seconds": statistics.median(seconds),
            "over_fp16": statistics.median(a / b for a, b in zip(taken[SOURCE], seconds, strict=True)),
        }
        for name, seconds in taken.items()
    ]
