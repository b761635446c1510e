"""How fast a model is beside the floating-point model and other ways to quantize it, as `bench` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from spq_graph.decisions.retarget import retarget
from spq_graph.decisions.variants import in_other_formats, variants, weight_only
from spq_graph.documents import artifact
from spq_graph.documents.plan import Plan
from spq_graph.documents.speed import Speed
from spq_graph.jobs.speed_report import add_to_report, check_report
from spq_graph.passes.files.read import digest_of
from spq_graph.runtime.measures import timing
from spq_graph.runtime.proof.held import refuse_absent, why_absent
from spq_graph.terms.errors import GraphError, UsageError
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import EVERYWHERE, FP32, MODEL, SPIKE_AWARE, WEIGHT_ONLY, RowId, RowKind
from spq_graph.terms.targets import PROFILES, target_named
from spq_graph.workbench.holding import refuse_unheld
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.timed import Entry, Terms, Times, in_turns, summed_up
from spq_graph.workbench.workbench import Workbench

LENGTHS = (128, 512)
PAST = 128


def bench(
    model: Openable,
    *,
    against: Openable | None = None,
    targets: Sequence[str] = (),
    rounds: int = 5,
    threads: int = 1,
    lengths: Sequence[int] = LENGTHS,
    report: bool = False,
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
        report: write the figures into the report of the OUT folder that `model` is, and draw its page again.
        steps: times and shows what is done.

    Raises:
        UsageError: there is no report to write into; said before anything is timed.
        SpqError: what is wrong, where, and what to do.
    """
    opening, steps = Opening.of(model), steps or Steps()
    if report:
        check_report(opening.place)
    _check(opening, against, targets, steps)
    with opening.open(steps, find_sites=False) as found, ExitStack() as beside:
        plan = _plan_beside(opening.name)
        own = Entry(
            SPIKE_AWARE if plan is not None else MODEL,
            _file(found),
            plan.recipe.target if plan else "cpu",
            found.logits,
        )
        fitting, entries = _fitting(found, lengths, opening.name), [own]
        if against is not None:
            reference = beside.enter_context(Opening.of(against).open(steps, find_sites=False))
            fitting = _fitting(reference, fitting, reference.source.origin)
            entries = [
                Entry(FP32, _file(reference), "cpu", reference.logits),
                *_others(reference, plan, own, targets, steps),
                own,
            ]
        speed = _timed(entries, steps, Terms(fitting, min(PAST, *fitting), rounds, threads))
    if report:
        add_to_report(opening.place, speed)
    return speed


def _file(found: Workbench) -> Path:
    """The file that is timed: the model's own, or what ONNX Runtime runs of it."""
    return found.model if found.prepared.runs else found.runner.path


def _check(opening: Opening, against: Openable | None, targets: Sequence[str], steps: Steps) -> None:
    """Refuse what can be known to be wrong before a model is opened.

    Raises:
        UsageError: there is no such target, or it is not here.
        SourceError: a model is not there.
    """
    for target in targets:
        refuse_absent(PROFILES[target_named(target)], f"--target {target}")
    if targets and against is None:
        steps.remark("--target is not used: other targets are timed beside --against FP_MODEL only")
    for one in (opening, *([Opening.of(against)] if against is not None else [])):
        one.resolve(find_sites=False)


def _fitting(found: Workbench, lengths: Sequence[int], name: str) -> list[int]:
    """The lengths that a model can take."""
    longest = found.runner.fixed_shape[1]
    fitting = [n for n in lengths if longest in (None, n) and n <= (found.source.max_length or n)]
    if not fitting:
        raise UsageError(
            f"the model takes no prompt of {' or '.join(map(str, lengths))} tokens",
            where=name,
            remedy=f"--length {longest or found.source.max_length}",
        )
    return fitting


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
    formats = in_other_formats(plan)
    rows = {row.id: row.plan for row in (*variants(plan, stored), *formats, weight_only(plan))}
    with steps.step("build", "Building what it is compared with"):
        for row in (EVERYWHERE, *(one.id for one in formats), WEIGHT_ONLY):
            yield Entry(row, reference.build(rows[row]).path, rows[row].recipe.target, reference.logits)
        for target in targets or PROFILES:
            profile = PROFILES[target]
            if profile.name not in (own.target, "portable") and why_absent(profile) is None:
                try:
                    refuse_unheld(reference.prepared.graph, (profile.name,), plan.model.origin)
                except GraphError as error:
                    if targets:
                        raise
                    steps.remark(f"target {target} is not timed: {error.what}")
                    continue
                compiled = RowId(RowKind.SPIKE_AWARE, target=profile.name)
                built = reference.build(retarget(plan, profile.name))
                yield Entry(compiled, built.path, target, reference.logits)


def _timed(entries: Sequence[Entry], steps: Steps, terms: Terms) -> Speed:
    with steps.step("load", "Loading each in a process of its own") as tick:
        loaded = {}
        for number, entry in enumerate(entries, 1):
            loaded[entry.id.name] = timing.load_apart(entry.path, entry.target, terms.threads)
            tick(number, len(entries))
    runners = {entry.id.name: entry.open(terms.threads) for entry in entries}
    for runner in runners.values():
        timing.require_finite(runner, min(terms.lengths))
    with steps.step("time", f"Timing {len(entries)} models in turns") as tick:
        return summed_up(entries, Times(in_turns(runners, terms, tick), loaded), terms)
