"""The single steps of the pipeline, each from files to files."""

from __future__ import annotations

from pathlib import Path

from spq_graph import artifact
from spq_graph.checkpoint import Checkpoint
from spq_graph.errors import UsageError
from spq_graph.models.source import resolve
from spq_graph.pipeline import add_companions, make_plan, opened
from spq_graph.plan import Plan
from spq_graph.progress import Steps
from spq_graph.ranges import Ranges, json_file, merge_all
from spq_graph.recipe import Recipe
from spq_graph.retarget import refuse_unsupported, retarget
from spq_graph.runtime.executed import Executed
from spq_graph.targets import Target


def apply(
    model: Path, plan: Plan, out: Path, steps: Steps, *, target: Target | None = None, force: bool = False
) -> tuple[Plan, Executed]:
    """Apply a plan to the ONNX file that it was made for, for its own target or another, and prove what runs.

    Returns:
        The plan as it was applied, whose sites say what another target could not run, and what ran.

    Raises:
        UsageError: the plan was made for another model.
        SpqError: as `quantize`.
    """
    artifact.check_out(out, force=force, inputs=(model,))
    plan = retarget(plan, target or plan.recipe.target)
    refuse_unsupported(plan)
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
        add_companions(bench.source, staging)
    return plan, executed


def export(source: str, out: Path, steps: Steps, *, opset: int = 21, cache: bool = True, force: bool = False) -> Path:
    """Export a Hugging Face folder into OUT, with KV cache or without, and return the file.

    Raises:
        SpqError: as `quantize`.
    """
    found = resolve(source)
    if found.kind != "folder":
        raise UsageError("this is an ONNX file already", where=source, remedy="name a Hugging Face folder")
    artifact.check_out(out, force=force, inputs=(found.path,))
    from spq_graph.models.export import export_folder

    with artifact.staged(out) as staging, steps.step("export", f"Exporting {found.origin}"):
        export_folder(found.path, staging / artifact.MODEL, opset=opset, cache=cache)
        add_companions(found, staging)
    return out / artifact.MODEL


def calibrate(
    model: str,
    out: Path,
    steps: Steps,
    *,
    calibration: Path | None = None,
    tokens: int | None = None,
    tokenizer: Path | None = None,
    shard: str | None = None,
    merge: tuple[Path, ...] = (),
    seed: int = 0,
    bos: bool = False,
    window: int | None = None,
    memory: int | None = None,
    allow_no_glu: bool = False,
) -> Ranges:
    """Measure ranges, or merge what was measured apart, and write them to `out`.

    An interrupted run leaves what it measured beside `out`, and the next one on the same data goes on from there.

    Raises:
        SpqError: as `quantize`.
    """
    out = json_file(out)
    inputs = tuple(p for p in (Path(model), calibration) if p is not None and p.is_file())
    artifact.check_file(out, inputs, arrays=True)
    part = _shard(shard) if shard is not None else None
    if merge:
        ranges = merge_all(Ranges.load(path) for path in merge)
        ranges.save(out)
        return ranges
    with opened(
        model, steps, tokenizer=tokenizer, bos=bos, window=window, memory=memory, allow_no_glu=allow_no_glu
    ) as bench:
        limit = tokens or Recipe().calibration_tokens
        data = bench.sequences(calibration, max_tokens=limit) if calibration else bench.sampled(tokens, seed)
        if part is not None:
            data = data.shard(*part)
        checkpoint = Checkpoint(out)
        ranges = bench.calibrate(data, checkpoint)
    ranges.save(out)
    checkpoint.clear()
    return ranges


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"'{text}' is not I/N with I below N", where="--shard", remedy="for example --shard 0/4")
    return int(index), int(count)


def plan(
    model: str,
    ranges: Path,
    out: Path,
    recipe: Recipe,
    steps: Steps,
    *,
    calibration: Path | None = None,
    tokenizer: Path | None = None,
    bos: bool = False,
    window: int | None = None,
    memory: int | None = None,
    allow_no_glu: bool = False,
) -> Plan:
    """Decide from measured ranges, and write the plan to `out`.

    Raises:
        SpqError: as `quantize`.
    """
    inputs = (Path(model), json_file(ranges), calibration)
    artifact.check_file(out, inputs=tuple(p for p in inputs if p is not None and p.is_file()))
    Ranges.load(ranges)  # what cannot be read is said before anything that takes long
    with opened(
        model, steps, tokenizer=tokenizer, bos=bos, window=window, memory=memory, allow_no_glu=allow_no_glu
    ) as bench:
        loaded = bench.known_ranges(ranges)
        data = bench.sequences(calibration, max_tokens=recipe.calibration_tokens) if calibration else None
        made = make_plan(bench, recipe, recipe.bits, loaded, data)
    made.save(out)
    return made
