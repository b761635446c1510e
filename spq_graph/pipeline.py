"""The whole way from a source to OUT. Its single steps are in `stages`."""

from __future__ import annotations

import filecmp
import resource
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from spq_graph import artifact, genai
from spq_graph.decide import decide
from spq_graph.errors import SourceError, UsageError
from spq_graph.html import render, shown_profiles
from spq_graph.illustration import draw, token_texts
from spq_graph.ladder import measure_ladder
from spq_graph.metering import meter
from spq_graph.models.source import REFERENCE, Source, resolve
from spq_graph.passes.graph import ends_of, files_of
from spq_graph.plan import Plan
from spq_graph.progress import Steps
from spq_graph.ranges import Ranges
from spq_graph.recipe import Recipe
from spq_graph.report import Report, Rung, TargetRun, TextRef, Verdict
from spq_graph.rows import SPIKE_AWARE
from spq_graph.runtime.executed import Executed
from spq_graph.runtime.sequences import Sequences
from spq_graph.variants import variants, weight_only
from spq_graph.verdict import environment, judge
from spq_graph.wording import headline
from spq_graph.workbench import Built, Workbench


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
        ranges: what `calibrate` measured of this model; None to measure it.
        memory: bytes of weights that a session may hold; None for the default.
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
    ranges: Path | None = None
    memory: int | None = None
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
    source: str,
    steps: Steps,
    *,
    tokenizer: Path | None = None,
    bos: bool = False,
    window: int | None = None,
    memory: int | None = None,
    allow_no_glu: bool = False,
    find_sites: bool = True,
) -> Iterator[Workbench]:
    """A workbench over a source, with a folder for intermediate files that vanishes at the end."""
    with tempfile.TemporaryDirectory(prefix="spq-graph-", ignore_cleanup_errors=True) as work:
        bench = Workbench(resolve(source, tokenizer), Path(work), steps, bos, window, memory)
        bench.open(allow_no_glu=allow_no_glu, find_sites=find_sites)
        yield bench


def quantize(request: Request, steps: Steps) -> Outcome:
    """The main job: export, identify, calibrate, decide, apply, prove, evaluate, report.

    Raises:
        SpqError: what is wrong, where, and what to do; nothing is left behind then.
    """
    inputs = [
        p
        for p in (request.calibration, request.text, request.tokenizer, request.ranges, Path(request.source))
        if p and p.exists()
    ]
    artifact.check_out(request.out, force=request.force, inputs=tuple(inputs))
    _check_texts(request, resolve(request.source, request.tokenizer))
    with (
        opened(
            request.source,
            steps,
            tokenizer=request.tokenizer,
            bos=request.bos,
            window=request.window,
            memory=request.memory,
            allow_no_glu=request.allow_no_glu,
        ) as bench,
        artifact.staged(request.out) as staging,
        ThreadPoolExecutor(max_workers=1) as beside,  # draws for the page while the file is written and proved
    ):
        text = _text(request, bench)
        ranges, sequences = _measured(request, bench, text)
        plans = [make_plan(bench, request.recipe, bits, ranges, sequences) for bits in request.bits]
        plan, tokens = plans[0], token_texts(bench.tokenizer, ranges)
        profiles = beside.submit(shown_profiles, plan, ranges, tokens)
        with steps.step("apply", "Inserting and proving"):
            built = bench.build(plan, staging / artifact.MODEL)
            layer = beside.submit(draw, bench, built, plan)
            executed = bench.prove(built, plan)
        ladder: list[Rung] = []
        if text is not None:
            rows = [row for p in plans for row in variants(p, bench.stored)] + [weight_only(plan)]
            # The artifact itself is the spike-aware row: what is measured is what is delivered.
            ready = {} if bench.emulates(plan) else {(SPIKE_AWARE, plan.recipe.bits): built}
            ladder = measure_ladder(bench, rows, text, steps, ready)
        report = _report(request, bench, plan, ladder, text, executed, built, steps)
        report.layer, report.tokens = layer.result(), tokens
        plan.save(staging / artifact.PLAN)
        ranges.save(staging / artifact.RANGES)
        report.save(staging / artifact.REPORT)
        (staging / artifact.PAGE).write_text(render(plan, report, profiles.result()), encoding="utf-8")
        add_companions(bench.source, staging)
    return Outcome(plan, report, request.out)


def _check_texts(request: Request, source: Source) -> None:
    for path in (request.calibration, request.text):
        if path is not None and not path.is_file():
            raise SourceError("no such file", where=str(path))
        if path is not None and path.suffix != ".npz" and source.tokenizer is None:
            raise UsageError("text needs a tokenizer", where=str(path), remedy="pass --tokenizer DIR, or ids as .npz")
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


def _measured(request: Request, bench: Workbench, text: Sequences | None) -> tuple[Ranges, Sequences | None]:
    """Ranges, and what to measure decisions on; None for that where neither data nor sampling was asked for."""
    if request.ranges is not None:
        ranges = bench.known_ranges(request.ranges)
        if request.calibration is None:
            return ranges, None
        sequences = calibration_data(request, bench)
        _refuse_overlap(text, sequences)
        return ranges, sequences
    sequences = calibration_data(request, bench)
    _refuse_overlap(text, sequences)
    return bench.calibrate(sequences), sequences


def _refuse_overlap(text: Sequences | None, calibration: Sequences) -> None:
    if text is None:
        return
    seen = {row.tobytes() for row in calibration.ids}
    common = sum(row.tobytes() in seen for row in text.ids)
    if common:
        raise UsageError(
            f"{common} sequences of the evaluation text are calibration data, so its figures would flatter",
            where=text.origin,
            remedy="evaluate on another text",
        )


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
            measure, tokens = meter(
                bench, sequences, recipe, ranges, lambda: tick(min(n := next(counter), expected), max(n, expected))
            )
        return decide(
            bench.found.sites,
            ranges,
            recipe,
            bench.ref,
            unmatched=bench.found.unmatched,
            origin=sequences.origin if sequences is not None else "",
            measure=measure,
            tokens=tokens,
            token_text=bench.tokenizer.token_text if bench.tokenizer is not None else None,
        )


def companions(source: Source) -> Path:
    """The folder that holds a source's tokenizer and generation files."""
    return source.path if source.kind == "folder" else source.tokenizer or source.path.parent


def add_companions(source: Source, staging: Path) -> None:
    """Put beside a model what other clients need: tokenizer and generation files, and onnxruntime-genai's own."""
    artifact.copy_companions(companions(source), staging)
    if source.kind != "onnx" or not genai.adopt(source.path, staging, artifact.MODEL):
        genai.write(staging, artifact.MODEL, *ends_of(staging / artifact.MODEL))


def _target_run(bench: Workbench, plan: Plan, executed: Executed, built: Built) -> TargetRun:
    profile = plan.recipe.profile
    return TargetRun(
        name=profile.name,
        device=profile.device,
        opset=built.opset,
        executed_here=executed.absent is None,
        absent=executed.absent,
        measured_on="OpenVINO" if profile.runtime == "openvino" and not bench.emulates(plan) else "ONNX Runtime",
    )


def _report(
    request: Request,
    bench: Workbench,
    plan: Plan,
    ladder: list[Rung],
    text: Sequences | None,
    executed: Executed,
    built: Built,
    steps: Steps,
) -> Report:
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    report = Report(
        verdict=Verdict(ready=False, summary=""),
        ladder=ladder,
        text=TextRef(digest=text.digest, tokens=text.tokens, origin=text.origin) if text is not None else None,
        executed=executed.ops,
        providers=executed.providers,
        target=_target_run(bench, plan, executed, built),
        fp8=executed.fp8_run(s.node for s in plan.fp8_sites) if executed.absent is None else None,
        placed=executed.by_provider,
        kernels={s.key: executed.kernels[s.node] for s in plan.sites if s.node in executed.kernels},
        seconds=steps.seconds,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        bytes=built.bytes,
        source_bytes=sum(file.stat().st_size for file in files_of(bench.model)),
        environment=environment(),
        command=request.command,
    )
    verdict = judge(plan, report)
    return report.model_copy(update={"verdict": verdict.model_copy(update={"summary": headline(plan, report)})})
