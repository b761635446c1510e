"""The whole way from a source to OUT."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from spq_graph.decisions.other_treatments import Footings
from spq_graph.decisions.recommend import contenders
from spq_graph.decisions.variants import Variant, decisions_of, in_other_formats, source_behind, variants, weight_only
from spq_graph.decisions.verdict import judge
from spq_graph.documents import artifact
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.report import Report, Rung, TargetRun, TextRef
from spq_graph.documents.results import Outcome
from spq_graph.documents.speed import Speed
from spq_graph.documents.staging import staged
from spq_graph.documents.verdict import Standing, Verdict
from spq_graph.jobs.forecast import expect
from spq_graph.jobs.order import Order
from spq_graph.passes.files.read import size_of
from spq_graph.runtime.sessions import memory
from spq_graph.runtime.sessions.executed import Executed
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.form import Form
from spq_graph.terms.rows import SPIKE_AWARE, Extent
from spq_graph.views.headline import headline
from spq_graph.views.page import render, shown_profiles
from spq_graph.workbench.answers import logits_ref
from spq_graph.workbench.built import Built
from spq_graph.workbench.carded import write_card
from spq_graph.workbench.companions import add_companions
from spq_graph.workbench.continued import samples_of
from spq_graph.workbench.data import Data, measured
from spq_graph.workbench.environment import environment
from spq_graph.workbench.glance import speed_of
from spq_graph.workbench.illustration import draw, token_texts
from spq_graph.workbench.naming import refuse_not_finite
from spq_graph.workbench.opening import Openable, Opening
from spq_graph.workbench.planning import make_plan
from spq_graph.workbench.prefixing import all_footings
from spq_graph.workbench.shared_ladder import measure_rows
from spq_graph.workbench.steps import Steps
from spq_graph.workbench.workbench import Workbench


@dataclass(frozen=True, slots=True)
class _Proved:
    """A plan as a file that was run."""

    plan: Plan
    built: Built
    executed: Executed


@dataclass(frozen=True, slots=True)
class _Texts:
    """What the ladder is measured on, how much of it, and what decisions were; None where there is no such.

    Attributes:
        footings: what plans and rows stand on: a prefix, or none.
    """

    ladder: Sequences | None
    extent: Extent | None
    calibration: Sequences | None
    footings: Footings

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that the model was run on; 0 where it was on none."""
        return max((one.ids.shape[1] for one in (self.ladder, self.calibration) if one is not None), default=0)


def quantize(
    model: Openable,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    data: Data | None = None,
    ladder: bool | str = True,
    ladder_bits: Sequence[int] = (),
    bench: bool = True,
    force: bool = False,
    command: str = "",
    steps: Steps | None = None,
) -> Outcome:
    """The main job: export, identify, calibrate, decide, apply, prove, evaluate, report.

    Args:
        model: what to quantize.
        out: the folder to write.
        recipe: what is wanted; None for the defaults.
        data: what is measured on; None for text sampled from the model itself.
        ladder: whether to measure the ladder, where there is a text to measure it on; "short" for what is decided
            between, without controls and other formats.
        ladder_bits: bit widths that get rows in the ladder beside the recipe's.
        bench: whether to time what was made beside its source, for some seconds.
        force: replace an earlier OUT.
        command: as the user gave it, for the report.
        steps: times and shows what is done.

    Raises:
        SpqError: what is wrong, where, and what to do; nothing is left behind then.
    """
    bits = tuple(ladder_bits)
    order = Order(Opening.of(model), Path(out), recipe or Recipe(), data or Data(), ladder, bits, force, bench)
    return fulfil(order, command=command, steps=steps)


def fulfil(order: Order, *, command: str = "", steps: Steps | None = None) -> Outcome:
    """Carry out what was ordered; as `quantize`."""
    recipe = order.recipe
    order.check()
    with order.begun(steps or Steps()) as (bench, given), staged(order.out, force=order.force) as staging:
        expect(bench, given, order)
        ranges, sequences = measured(bench, given, recipe)
        footings = all_footings(bench, recipe, ranges, sequences, order.extent if given.text is not None else None)
        plans = [make_plan(bench, recipe, bits, ranges, sequences, footings.own) for bits in order.widths]
        texts = _Texts(given.text, order.extent, sequences, footings)
        report = _write(bench, plans, ranges, texts, staging, command, timed=order.bench)
    return Outcome(order.out, plans[0], report)


def _write(
    bench: Workbench, plans: Sequence[Plan], ranges: Ranges, texts: _Texts, staging: Path, command: str, *, timed: bool
) -> Report:
    """Build the first plan, prove it, measure what there is to measure, and write all of OUT."""
    text = texts.ladder
    plan, tokens = plans[0], token_texts(bench.tokenizer, ranges)
    with ThreadPoolExecutor(max_workers=1) as beside:  # draws for the page while the file is written and proved
        profiles = beside.submit(shown_profiles, plan, ranges, tokens)
        with bench.steps.step("apply", "Inserting and proving"):
            memory.let_go()  # of what decisions were measured by: a session takes as much again
            built = bench.build(plan, staging / artifact.MODEL)
            layer = beside.submit(draw, bench, built, plan)
            unread = text is None and plan.search.kl is None  # nothing has run it on text yet
            finite = partial(refuse_not_finite, bench, plan, built, texts.calibration) if unread else None
            proved = _Proved(plan, built, bench.prove(built, plan, then=finite))
        rows = _rows(bench, plans, texts)
        ladder = _ladder(bench, plans[0], built, rows, texts)
        speed = speed_of(bench, plan, built, _rivals(plan, rows, ladder), texts.longest) if timed else None
        samples = samples_of(bench, plan, built, text) if ladder and text is not None else []
        report = _report(bench, proved, ladder, speed, texts, command)
        report.layer, report.tokens = layer.result(), tokens
        report.samples = samples
        plan.save(staging / artifact.PLAN)
        ranges.save(staging / artifact.RANGES)
        report.save(staging / artifact.REPORT)
        (staging / artifact.PAGE).write_text(render(plan, report, profiles.result()), encoding="utf-8")
        write_card(staging, plan, report)
    add_companions(bench.source, staging)
    return report


def _rows(bench: Workbench, plans: Sequence[Plan], texts: _Texts) -> list[Variant]:
    """What every plan is measured beside; where nothing is, what the first is timed beside."""
    bare = texts.footings.without_prefix(plans[0])
    if texts.ladder is None or texts.extent is None:
        return [weight_only(bare)]
    rows = source_behind(plans[0], bench.stored, texts.extent)
    rows += [row for plan in plans for row in variants(plan, bench.stored, texts.extent, texts.footings)]
    known = {decisions_of(row.plan) for row in rows}
    rivals = (*in_other_formats(bare, texts.extent), weight_only(bare))
    return [*rows, *(rival for rival in rivals if decisions_of(rival.plan) not in known)]


def _ladder(bench: Workbench, plan: Plan, built: Built, rows: Sequence[Variant], texts: _Texts) -> list[Rung]:
    """The rows, measured; the artifact itself is the spike-aware one: what is measured is what is delivered."""
    if texts.ladder is None or texts.extent is None:
        return []
    ready = {} if bench.emulates(plan) else {(SPIKE_AWARE, plan.recipe.bits): built}
    return measure_rows(bench, rows, texts.ladder, ready)


def _rivals(plan: Plan, rows: Sequence[Variant], ladder: Sequence[Rung]) -> list[Variant]:
    """What might be chosen in the plan's place, as far as the ladder tells."""
    wanted = contenders(plan, ladder)
    return [row for row in rows if row.id in wanted and row.bits in (plan.recipe.bits, 8 if row.id.all_in_one else 0)]


def _target_run(bench: Workbench, proved: _Proved) -> TargetRun:
    profile, absent = proved.plan.recipe.profile, proved.executed.absent
    emulated = bench.emulates(proved.plan)
    return TargetRun(
        name=profile.name,
        device=profile.device,
        opset=proved.built.opset,
        executed_here=absent is None,
        absent=absent,
        measured_on="OpenVINO" if profile.runtime == "openvino" and not emulated else "ONNX Runtime",
    )


def _report(
    bench: Workbench, proved: _Proved, ladder: list[Rung], speed: Speed | None, texts: _Texts, command: str
) -> Report:
    plan, executed, text = proved.plan, proved.executed, texts.ladder
    report = Report(
        verdict=Verdict(ready=False, status=Standing.NOT_MEASURED, summary=""),
        ladder=ladder,
        extent=texts.extent if ladder else None,
        text=TextRef(digest=text.digest, tokens=text.tokens, origin=text.origin) if text is not None else None,
        executed=executed.ops,
        providers=executed.providers,
        target=_target_run(bench, proved),
        folded={s.key: executed.folded[s.node] for s in plan.sites if s.node in executed.folded},
        fp8=executed.operator_run(Form.OPERATOR, plan),
        by_token=executed.operator_run(Form.BY_TOKEN, plan),
        with_branch=executed.operator_run(Form.WITH_BRANCH, plan),
        placed=executed.by_provider,
        kernels={s.key: executed.kernels[s.node] for s in plan.sites if s.node in executed.kernels},
        speed=speed,
        seconds=bench.steps.seconds,
        expected_seconds=bench.steps.course.expected,
        peak_rss_bytes=memory.peak(),
        bytes=proved.built.bytes,
        source_bytes=size_of(bench.model),
        environment=environment(),
        command=command,
        logits=logits_ref(bench, text, measured=bool(ladder) or plan.search.rule == "auto"),
    )
    report.verdict = judge(plan, report)
    report.verdict.summary = headline(plan, report)
    return report
