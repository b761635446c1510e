"""How fast a model is beside the floating-point model and other ways to quantize it, as `bench` prints."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from spq_graph.decisions.retarget import retarget
from spq_graph.decisions.variants import variants, weight_only
from spq_graph.documents import artifact
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.report import Report
from spq_graph.documents.speed import Decode, Prefill, Speed, SpeedRow
from spq_graph.passes.files.read import digest_of, files_of
from spq_graph.runtime.measures import timing
from spq_graph.runtime.proof.health import processor
from spq_graph.runtime.proof.held import runner_on, why_absent
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.errors import UsageError
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import EVERYWHERE, FP32, MODEL, SPIKE_AWARE, WEIGHT_ONLY, RowId, RowKind
from spq_graph.terms.targets import PROFILES, target_named
from spq_graph.views.page import render, shown_profiles
from spq_graph.workbench.environment import environment
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench

LENGTHS = (128, 512)
PAST = 128


@dataclass(frozen=True, slots=True)
class Entry:
    """One model to be timed."""

    id: RowId
    path: Path
    target: str


def bench(
    model: Openable,
    *,
    against: Openable | None = None,
    targets: Sequence[str] = (),
    rounds: int = 5,
    threads: int = 1,
    lengths: Sequence[int] = LENGTHS,
    steps: Steps | None = None,
) -> Speed:
    """Time a model, and what it is to be compared with, in turns.

    Args:
        model: an .onnx file, an OUT folder, a Hugging Face folder, or "reference".
        against: the floating-point model. With an OUT folder made from this very file, INT8 everywhere, 8-bit weights
            alone and the other targets are built from its plan and timed as well.
        targets: which of them; by default all whose runtime is here.
        rounds: how often each is timed.
        threads: of every session.
        lengths: of prompts; those that the model cannot take are left out.
        steps: times and shows what is done.

    Raises:
        SpqError: what is wrong, where, and what to do.
    """
    opening, steps = Opening.of(model), steps or Steps()
    for target in targets:
        target_named(target)
    with opening.open(steps, find_sites=False) as found:
        plan = _plan_beside(opening.name)
        own = Entry(SPIKE_AWARE if plan is not None else MODEL, found.model, plan.recipe.target if plan else "cpu")
        longest = found.runner.fixed_shape[1]
        fitting = [n for n in lengths if longest in (None, n) and n <= (found.source.max_length or n)]
        if not fitting:
            raise UsageError(
                f"the model takes no prompt of {' or '.join(map(str, lengths))} tokens", where=opening.name
            )
        if against is None:
            return _timed([own], steps, rounds, threads, fitting)
        with Opening.of(against).open(steps, find_sites=False) as reference:
            entries = [Entry(FP32, reference.model, "cpu"), *_others(reference, plan, own, targets, steps), own]
            return _timed(entries, steps, rounds, threads, fitting)


def _plan_beside(path: str) -> Plan | None:
    file = Path(path) / artifact.PLAN
    return Plan.load(file) if file.is_file() else None


def _others(
    reference: Workbench, plan: Plan | None, own: Entry, targets: Sequence[str], steps: Steps
) -> Iterator[Entry]:
    """What a plan can be compared with, where the floating-point model is the one that it was made for."""
    if plan is None or digest_of(reference.model) != plan.model.digest:
        steps.remark("only the two models are timed: the plan is not one of the floating-point model given")
        return
    stored = dict.fromkeys((site.key for site in plan.sites), Precision.FP32)
    rows = {row.id: row.plan for row in (*variants(plan, stored), weight_only(plan))}
    with steps.step("build", "Building what it is compared with"):
        for row in (EVERYWHERE, WEIGHT_ONLY):
            yield Entry(row, reference.build(rows[row]).path, rows[row].recipe.target)
        for target in targets or PROFILES:
            profile = PROFILES[target]
            if profile.name not in (own.target, "portable") and why_absent(profile) is None:
                compiled = RowId(RowKind.SPIKE_AWARE, target=profile.name)
                yield Entry(compiled, reference.build(retarget(plan, profile.name)).path, target)


def _timed(entries: Sequence[Entry], steps: Steps, rounds: int, threads: int, lengths: Sequence[int]) -> Speed:
    with steps.step("load", "Loading each in a process of its own") as tick:
        loaded = {}
        for number, entry in enumerate(entries, 1):
            loaded[entry.id.name] = timing.load_apart(entry.path, entry.target, threads)
            tick(number, len(entries))
    runners: dict[str, Runner] = {
        entry.id.name: runner_on(PROFILES[entry.target], entry.path, threads=threads) for entry in entries
    }
    with steps.step("time", f"Timing {len(entries)} models in turns") as tick:
        past = min(PAST, *lengths)
        seconds = timing.in_turns(runners, lengths, past, rounds, tick)
    first = seconds[entries[0].id.name]
    rows = []
    for entry in entries:
        timed = seconds[entry.id.name]
        decode = timed.get(timing.DECODE)
        rows.append(
            SpeedRow(
                id=entry.id,
                target=entry.target,
                bytes=sum(f.stat().st_size for f in files_of(entry.path)),
                load_seconds=round(loaded[entry.id.name].seconds, 4),
                resident_bytes=loaded[entry.id.name].resident_bytes,
                prefill={
                    str(n): Prefill(
                        seconds=statistics.median(timed[label := f"prefill {n}"]),
                        times=times_faster(first[label], timed[label]),
                    )
                    for n in lengths
                },
                decode=None
                if decode is None
                else Decode(
                    tokens_per_second=1 / statistics.median(decode),
                    times=times_faster(first[timing.DECODE], decode) if timing.DECODE in first else None,
                ),
            )
        )
    return Speed(threads=threads, rounds=rounds, past=past, processor=processor(), environment=environment(), rows=rows)


def times_faster(first: Sequence[float], other: Sequence[float]) -> float:
    """Median over the rounds of how many times faster the other was."""
    return statistics.median(a / b for a, b in zip(first, other, strict=True))


def check_report(out: Path) -> None:
    """See to it, before anything takes long, that there is a report to write into.

    Raises:
        UsageError: OUT is no folder that `quantize` wrote.
    """
    absent = [name for name in (artifact.PLAN, artifact.REPORT, artifact.RANGES) if not (out / name).is_file()]
    if absent:
        raise UsageError(
            f"there is no {absent[0]} here, so no report to write into",
            where=str(out),
            remedy="name the folder that `spq-graph quantize` wrote, or leave out --report",
        )


def add_to_report(out: Path, speed: Speed) -> None:
    """Write what was measured of an artifact into its report, and draw the page again.

    Raises:
        SpqError: OUT is no folder that `quantize` wrote.
    """
    plan = Plan.load(out / artifact.PLAN)
    report = Report.load(out / artifact.REPORT).model_copy(update={"speed": speed})
    profiles = shown_profiles(plan, Ranges.load(out / artifact.RANGES), report.tokens)
    with tempfile.TemporaryDirectory(prefix=".speed-", dir=out) as folder:
        report.save(Path(folder, artifact.REPORT))
        Path(folder, artifact.PAGE).write_text(render(plan, report, profiles), encoding="utf-8")
        for name in (artifact.REPORT, artifact.PAGE):
            Path(folder, name).replace(out / name)
