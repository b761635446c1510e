"""The single steps of the pipeline, each from files to files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from spq_graph import artifact
from spq_graph.checkpoint import Checkpoint
from spq_graph.companions import add_companions
from spq_graph.data import Data, calibration_data
from spq_graph.errors import UsageError
from spq_graph.opening import Openable, Opening
from spq_graph.plan import Plan
from spq_graph.planning import make_plan
from spq_graph.progress import Steps
from spq_graph.ranges import Ranges, json_file, merge_all
from spq_graph.recipe import Recipe
from spq_graph.results import Applied, Exported
from spq_graph.retarget import refuse_unsupported, retarget
from spq_graph.targets import target_named


def apply(
    model: Openable,
    out: str | Path,
    plan: Plan | str | Path,
    *,
    target: str | None = None,
    force: bool = False,
    steps: Steps | None = None,
) -> Applied:
    """Apply a plan to the ONNX file that it was made for, for its own target or another, and prove what runs.

    Args:
        model: the file that the plan was made for.
        out: the folder to write.
        plan: the plan, or its file.
        target: what to compile for; None for the plan's own.
        force: replace an earlier OUT.
        steps: times and shows what is done.

    Raises:
        UsageError: there is no such target, or the plan was made for another model.
        SpqError: as `quantize`.
    """
    opening, out = replace(Opening.of(model), allow_no_glu=True), Path(out)
    named = target_named(target) if target is not None else None
    plan = plan if isinstance(plan, Plan) else Plan.load(Path(plan))
    artifact.check_out(out, force=force, inputs=(Path(opening.source),))
    plan = retarget(plan, named or plan.recipe.target)
    refuse_unsupported(plan)
    with opening.open(steps) as bench, artifact.staged(out) as staging:
        if plan.model.digest != bench.digest:
            raise UsageError(
                "this plan was made for another model",
                where=f"{plan.model.origin} ({plan.model.digest[:19]}…), not {opening.name} ({bench.digest[:19]}…)",
                remedy="make a plan for this model with `spq-graph plan`",
            )
        with bench.steps.step("apply", "Inserting and proving"):
            built = bench.build(plan, staging / artifact.MODEL)
            executed = bench.prove(built, plan)
        plan.save(staging / artifact.PLAN)
        add_companions(bench.source, staging)
    fp8 = executed.fp8_run(site.node for site in plan.fp8_sites) if executed.absent is None else None
    return Applied(out, plan, executed.absent, executed.ops, executed.providers, fp8)


def export(
    model: Openable,
    out: str | Path,
    *,
    opset: int = 21,
    cache: bool = True,
    force: bool = False,
    steps: Steps | None = None,
) -> Exported:
    """Export a Hugging Face folder to ONNX.

    Args:
        model: the folder.
        out: the folder to write.
        opset: of ONNX.
        cache: with keys and values as inputs and outputs.
        force: replace an earlier OUT.
        steps: times and shows what is done.

    Raises:
        UsageError: it is an ONNX file already.
        SpqError: as `quantize`.
    """
    opening, out, steps = Opening.of(model), Path(out), steps or Steps()
    found = opening.resolve()
    if found.kind != "folder":
        raise UsageError("this is an ONNX file already", where=opening.name, remedy="name a Hugging Face folder")
    artifact.check_out(out, force=force, inputs=(found.path,))
    from spq_graph.models.export import export_folder

    with artifact.staged(out) as staging, steps.step("export", f"Exporting {found.origin}"):
        export_folder(found.path, staging / artifact.MODEL, opset=opset, cache=cache)
        add_companions(found, staging)
    return Exported(out / artifact.MODEL)


def calibrate(
    model: Openable,
    out: str | Path,
    *,
    calibration: str | Path | None = None,
    tokens: int | None = None,
    seed: int = 0,
    shard: str | None = None,
    steps: Steps | None = None,
) -> Ranges:
    """Measure the ranges of every site's input, and write them to `out`.

    An interrupted run leaves what it measured beside `out`, and the next one on the same data goes on from there.

    Args:
        model: what to measure.
        out: the file to write, JSON with arrays beside it.
        calibration: text, JSON list of strings, or .npz of input_ids; None for text sampled from the model itself.
        tokens: how much of it; None for the default of a recipe, or for as much sampled text as settles ranges.
        seed: of the sampling.
        shard: I/N for the I-th of N shards of the sequences, from 0, to be merged by `merge`.
        steps: times and shows what is done.

    Raises:
        SpqError: as `quantize`.
    """
    opening, out, data = Opening.of(model), json_file(Path(out)), Data(calibration, tokens)
    artifact.check_file(out, tuple(p for p in (*opening.inputs, *data.inputs) if p.is_file()), arrays=True)
    part = _shard(shard) if shard is not None else None
    with opening.open(steps) as bench:
        sequences = calibration_data(bench, data, Recipe(seed=seed))
        if part is not None:
            sequences = sequences.shard(*part)
        checkpoint = Checkpoint(out)
        ranges = bench.calibrate(sequences, checkpoint)
    ranges.save(out)
    checkpoint.clear()
    return ranges


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UsageError(f"'{text}' is not I/N with I below N", where="--shard", remedy="for example --shard 0/4")
    return int(index), int(count)


def merge(parts: Iterable[Ranges | str | Path], out: str | Path) -> Ranges:
    """Merge ranges of one model that were measured apart, or their files, and write them to `out`.

    Raises:
        DataError: there are none, they cannot be read, or they are of different models.
        SpqError: `out` must not be written.
    """
    out = json_file(Path(out))
    artifact.check_file(out, arrays=True)
    ranges = merge_all(part if isinstance(part, Ranges) else Ranges.load(Path(part)) for part in parts)
    ranges.save(out)
    return ranges


def plan(
    model: Openable,
    out: str | Path,
    recipe: Recipe | None = None,
    *,
    ranges: Ranges | str | Path,
    calibration: str | Path | None = None,
    steps: Steps | None = None,
) -> Plan:
    """Decide from measured ranges, and write the plan to `out`.

    Args:
        model: what the ranges were measured on.
        out: the file to write.
        recipe: what is wanted; None for the defaults.
        ranges: what `calibrate` measured, or its file.
        calibration: what to measure decisions on; without, sites are chosen by their ratio.
        steps: times and shows what is done.

    Raises:
        SpqError: as `quantize`.
    """
    opening, out, recipe = Opening.of(model), Path(out), recipe or Recipe()
    files = (*opening.inputs, calibration, None if isinstance(ranges, Ranges) else json_file(Path(ranges)))
    artifact.check_file(out, inputs=tuple(p for f in files if f is not None and (p := Path(f)).is_file()))
    if not isinstance(ranges, Ranges):
        Ranges.load(Path(ranges))  # what cannot be read is said before anything that takes long
    with opening.open(steps) as bench:
        known = bench.known_ranges(ranges)
        data = calibration_data(bench, Data(calibration), recipe) if calibration is not None else None
        made = make_plan(bench, recipe, recipe.bits, known, data)
    made.save(out)
    return made
