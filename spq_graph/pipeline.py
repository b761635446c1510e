"""Pipeline: the whole way from a source to OUT, and its single steps. Each reads files and leaves files."""

from __future__ import annotations

import filecmp
import platform
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spq_graph import __version__, artifact
from spq_graph.decide import decide
from spq_graph.errors import SourceError, UsageError
from spq_graph.html import render
from spq_graph.ladder import Variant, measure_ladder, variants, weight_only
from spq_graph.models.source import REFERENCE, Source, resolve
from spq_graph.passes.graph import files_of
from spq_graph.plan import Plan
from spq_graph.progress import Steps
from spq_graph.ranges import Ranges, merge_all
from spq_graph.recipe import Recipe
from spq_graph.report import Report, Rung, TextRef, Verdict
from spq_graph.runtime.sequences import Sequences
from spq_graph.runtime.session import Executed
from spq_graph.wording import headline
from spq_graph.workbench import Built, Workbench, everywhere

# Spike-aware is called ready within this much of the floating-point perplexity.
READY_WITHIN = 0.01


@dataclass(frozen=True, slots=True)
class Request:
    """What `quantize` was asked for.

    Attributes:
        source: a Hugging Face folder, an .onnx file, or the word "reference".
        out: the folder to write.
        recipe: for the first of `bits`, the one that OUT holds.
        bits: every bit width that gets rows in the ladder.
        tokenizer: folder with tokenizer.json, for an .onnx file.
        calibration, text: what is measured on; the text is never the calibration data.
        force: replace an earlier OUT.
        evaluate: measure the ladder.
        max_eval_tokens: limit of the text.
        bos: prepend BOS even where the tokenizer does not.
        window: tokens in a sequence; None for the model's length.
        allow_no_glu: go on where no GLU is found.
        command: as it was given, for the report.
    """

    source: str
    out: Path
    recipe: Recipe
    bits: tuple[int, ...] = (8,)
    tokenizer: Path | None = None
    calibration: Path | None = None
    calibration_tokens: int | None = None
    text: Path | None = None
    force: bool = False
    evaluate: bool = True
    max_eval_tokens: int | None = None
    bos: bool = False
    window: int | None = None
    allow_no_glu: bool = False
    command: str = ""


@dataclass(slots=True)
class Outcome:
    """What `quantize` made."""

    plan: Plan
    report: Report
    out: Path


@contextmanager
def opened(
    source: str, steps: Steps, *, tokenizer: Path | None = None, bos: bool = False, window: int | None = None,
    allow_no_glu: bool = False, find_sites: bool = True,
) -> Iterator[Workbench]:  # fmt: skip
    """A workbench over a source, with a folder for intermediate files that vanishes at the end."""
    with tempfile.TemporaryDirectory(prefix="spq-graph-", ignore_cleanup_errors=True) as work:
        bench = Workbench(resolve(source, tokenizer), Path(work), steps, bos, window)
        bench.open(allow_no_glu=allow_no_glu, find_sites=find_sites)
        yield bench


def quantize(request: Request, steps: Steps) -> Outcome:
    """The main job: export, identify, calibrate, decide, apply, prove, evaluate, report.

    Raises:
        SpqError: what is wrong, where, and what to do; nothing is left behind then.
    """
    inputs = [
        p for p in (request.calibration, request.text, request.tokenizer, Path(request.source)) if p and p.exists()
    ]
    artifact.check_out(request.out, force=request.force, inputs=tuple(inputs))
    _check_texts(request)
    with (
        opened(
            request.source, steps, tokenizer=request.tokenizer, bos=request.bos, window=request.window,
            allow_no_glu=request.allow_no_glu,
        ) as bench,
        artifact.staged(request.out) as staging,
    ):  # fmt: skip
        text = _text(request, bench)
        sequences = calibration_data(request, bench)
        ranges = bench.calibrate(sequences)
        plans = [make_plan(bench, request.recipe, bits, ranges, sequences) for bits in request.bits]
        plan = plans[0]
        with steps.step("apply", "Inserting and proving"):
            built = bench.build(plan, staging / artifact.MODEL)
            executed = bench.prove(built, plan)
        ladder: list[Rung] = []
        if text is not None:
            rows = [row for p in plans for row in variants(p, bench.as_is)] + [weight_only(plan)]
            _reuse(rows, built, plan)
            ladder = measure_ladder(bench, rows, text, steps)
        report = _report(request, bench, plan, ladder, text, executed, built.bytes, steps)
        plan.save(staging / artifact.PLAN)
        ranges.save(staging / artifact.RANGES)
        report.save(staging / artifact.REPORT)
        (staging / artifact.PAGE).write_text(render(plan, report), encoding="utf-8")
        artifact.copy_companions(_companions(bench.source), staging)
    return Outcome(plan, report, request.out)


def _reuse(rows: list[Variant], built: Built, plan: Plan) -> None:
    """The artifact itself is the row called spike_aware: what is measured is what is delivered."""
    for row in rows:
        if row.name == "spike_aware" and row.plan is plan:
            row.built = built


def _check_texts(request: Request) -> None:
    for path in (request.calibration, request.text):
        if path is not None and not path.is_file():
            raise SourceError("no such file", where=str(path))
    text, calibration = request.text, request.calibration
    if text is not None and calibration is not None and filecmp.cmp(text, calibration, shallow=False):
        raise UsageError(
            "the evaluation text is the calibration data, so its figures would flatter",
            where=str(text),
            remedy="evaluate on another text",
        )


def _text(request: Request, bench: Workbench) -> Sequences | None:
    """What the ladder is measured on; read before anything that takes long."""
    path = request.text
    if path is None and bench.source.path == REFERENCE:
        path = REFERENCE / "evaluation.txt"
    if path is None or not request.evaluate:
        return None
    return bench.sequences(path, max_tokens=request.max_eval_tokens)


def calibration_data(request: Request, bench: Workbench) -> Sequences:
    """The calibration data that was named, or text sampled from the model."""
    if request.calibration is not None:
        return bench.sequences(request.calibration, max_tokens=request.recipe.calibration_tokens)
    return bench.sampled(request.calibration_tokens, request.recipe.seed)


def make_plan(bench: Workbench, recipe: Recipe, bits: int, ranges: Ranges, sequences: Sequences | None) -> Plan:
    """Decide at so many bits; without sequences by the ratio rule."""
    recipe = recipe.model_copy(update={"bits": bits})
    with bench.steps.step(f"decide at {bits} bits", f"Deciding at {bits} bits") as tick:
        measure, tokens = None, 0
        if sequences is not None and recipe.spike_ratio is None:
            counter = iter(range(1, 1_000_000))
            candidates = sum(
                v.ratio > recipe.candidate_ratio for s in bench.found.sites if (v := ranges.values.get(s.input))
            )
            expected = candidates + 6
            measure, tokens = bench.meter(
                sequences, recipe, ranges, lambda: tick(min(n := next(counter), expected), max(n, expected))
            )
        return decide(
            bench.found.sites, ranges, recipe, bench.ref, as_is=bench.as_is, unmatched=bench.found.unmatched,
            origin=sequences.origin if sequences is not None else "", measure=measure, tokens=tokens,
            token_text=bench.tokenizer.token_text if bench.tokenizer is not None else None,
        )  # fmt: skip


def apply(model: Path, plan: Plan, out: Path, steps: Steps, *, force: bool = False) -> Executed:
    """Apply a plan to the ONNX file that it was made for, and prove what runs.

    Raises:
        UsageError: the plan was made for another model.
        SpqError: as `quantize`.
    """
    artifact.check_out(out, force=force, inputs=(model,))
    with opened(str(model), steps, allow_no_glu=True) as bench, artifact.staged(out) as staging:
        if plan.model.digest != bench.digest:
            raise UsageError(
                "this plan was made for another model",
                where=f"{plan.model.origin} ({plan.model.digest[:19]}…), not {model} ({bench.digest[:19]}…)",
                remedy="make a plan for this model with `spq-graph plan`",
            )
        with steps.step("apply", "Inserting and proving"):
            built = bench.build(plan, staging / artifact.MODEL)
            executed = bench.prove(built, plan)
        plan.save(staging / artifact.PLAN)
        artifact.copy_companions(_companions(bench.source), staging)
    return executed


def _companions(source: Source) -> Path:
    return source.path if source.kind == "folder" else source.tokenizer or source.path.parent


def _report(
    request: Request, bench: Workbench, plan: Plan, ladder: list[Rung], text: Sequences | None, executed: Executed,
    size: int, steps: Steps,
) -> Report:  # fmt: skip
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    report = Report(
        verdict=Verdict(ready=False, summary=""),
        ladder=ladder,
        text=TextRef(digest=text.digest, tokens=text.tokens, origin=text.origin) if text is not None else None,
        executed=executed.ops,
        providers=executed.providers,
        seconds=steps.seconds,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        bytes=size,
        source_bytes=sum(file.stat().st_size for file in files_of(bench.model)),
        environment=environment(),
        command=request.command,
    )
    verdict = judge(plan, report)
    return report.model_copy(update={"verdict": verdict.model_copy(update={"summary": headline(plan, report)})})


def judge(plan: Plan, report: Report) -> Verdict:
    """Ready or not, and what speaks against it."""
    warnings = []
    bits = plan.recipe.bits
    rows = {r.name: r for r in report.ladder if r.bits in (None, bits)}
    if rows:
        loss = rows["spike_aware"].perplexity / rows["fp32"].perplexity - 1
        ready = loss <= READY_WITHIN
        if not ready:
            warnings.append(f"perplexity is {loss:.2%} above FP32, more than {READY_WITHIN:.0%}")
    else:
        ready = plan.budget_met
        warnings.append("accuracy was not measured on a text: pass --text FILE")
    if not plan.budget_met:
        warnings.append(
            f"the KL budget of {plan.recipe.kl_budget:g} nats was not met with at most {plan.recipe.max_kept:.0%} of "
            f"the sites kept (KL {plan.search.kl:.3g}); allow more with max_kept in a recipe, or more bits"
        )
    if plan.unmatched:
        warnings.append(f"{len(plan.unmatched)} nodes were not understood; `spq-graph inspect --unmatched` says why")
    return Verdict(ready=ready, summary="", warnings=warnings)


def environment() -> dict[str, str]:
    """Versions and machine, for the report."""
    found = {"spq-graph": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("onnxruntime", "onnxruntime-gpu", "onnx", "onnx-ir", "onnxscript", "numpy", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def export(source: str, out: Path, steps: Steps, *, opset: int = 21, force: bool = False) -> Path:
    """Export a Hugging Face folder into OUT, and return the file.

    Raises:
        SpqError: as `quantize`.
    """
    found = resolve(source)
    if found.kind != "folder":
        raise UsageError("this is an ONNX file already", where=source, remedy="name a Hugging Face folder")
    artifact.check_out(out, force=force, inputs=(found.path,))
    from spq_graph.models.export import export_folder

    with artifact.staged(out) as staging, steps.step("export", f"Exporting {found.origin}"):
        export_folder(found.path, staging / artifact.MODEL, opset=opset)
        artifact.copy_companions(found.path, staging)
    return out / artifact.MODEL


def calibrate(
    model: str, out: Path, steps: Steps, *, calibration: Path | None = None, tokens: int | None = None,
    tokenizer: Path | None = None, shard: str | None = None, merge: tuple[Path, ...] = (), seed: int = 0,
    bos: bool = False, window: int | None = None, allow_no_glu: bool = False,
) -> Ranges:  # fmt: skip
    """Measure ranges, or merge what was measured apart, and write them to `out`.

    Raises:
        SpqError: as `quantize`.
    """
    if merge:
        ranges = merge_all(Ranges.load(path) for path in merge)
        ranges.save(out)
        return ranges
    with opened(model, steps, tokenizer=tokenizer, bos=bos, window=window, allow_no_glu=allow_no_glu) as bench:
        limit = tokens or Recipe().calibration_tokens
        data = bench.sequences(calibration, max_tokens=limit) if calibration else bench.sampled(tokens, seed)
        if shard is not None:
            data = data.shard(*_shard(shard))
        ranges = bench.calibrate(data)
    ranges.save(out)
    return ranges


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(count) > 0):
        raise UsageError(f"'{text}' is not I/N", where="--shard", remedy="for example --shard 0/4")
    return int(index), int(count)


def plan(
    model: str, ranges: Path, out: Path, recipe: Recipe, steps: Steps, *, calibration: Path | None = None,
    tokenizer: Path | None = None, bos: bool = False, window: int | None = None, allow_no_glu: bool = False,
) -> Plan:  # fmt: skip
    """Decide from measured ranges, and write the plan to `out`.

    Raises:
        SpqError: as `quantize`.
    """
    loaded = Ranges.load(ranges)
    with opened(model, steps, tokenizer=tokenizer, bos=bos, window=window, allow_no_glu=allow_no_glu) as bench:
        everywhere(bench, loaded, recipe)  # says so where the ranges belong to another model
        data = bench.sequences(calibration, max_tokens=recipe.calibration_tokens) if calibration else None
        made = make_plan(bench, recipe, recipe.bits, loaded, data)
    made.save(out)
    return made
