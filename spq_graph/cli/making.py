"""The verbs that make something: `quantize`, and its single steps `export`, `calibrate`, `plan` and `apply`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from spq_graph.cli import options as o
from spq_graph.cli.terminal import answer, print_json, steps, unused

if TYPE_CHECKING:
    from spq_graph.jobs.order import Order


def quantize(
    source: o.Source = "reference",
    out: o.Out = Path("spq-out"),
    preset: o.PresetName = None,
    recipe: o.RecipeFile = None,
    bits: o.LadderBits = None,
    calibration: o.Calibration = None,
    calibration_tokens: o.CalibrationTokens = None,
    no_chat: o.NoChat = False,
    text: o.Text = None,
    max_eval_tokens: o.MaxLadderTokens = None,
    tokenizer: o.Tokenizer = None,
    high_precision: o.HighPrecision = None,
    keep: o.Keep = None,
    remedy: o.Remedy = None,
    no_remedy: o.NoRemedy = None,
    spike_ratio: o.SpikeRatio = None,
    target: o.Target = None,
    quantize_lm_head: o.QuantizeLmHead = False,
    head: o.Head = None,
    embedding: o.Embedding = None,
    seed: o.Seed = None,
    bos: o.Bos = False,
    window: o.Window = None,
    ranges: o.KnownRanges = None,
    memory_limit: o.MemoryLimit = None,
    dask: o.Dask = None,
    force: o.Force = False,
    ladder: o.Ladder = None,
    no_eval: o.NoEval = False,
    no_bench: o.NoBench = False,
    dry_run: o.DryRun = False,
    allow_no_glu: o.AllowNoGlu = False,
    as_json: o.Json = False,
) -> None:
    """The whole way: export, find, measure, decide, insert, prove, evaluate, report."""
    from spq_graph.documents.recipe import load_recipe
    from spq_graph.documents.remedies import wished
    from spq_graph.jobs.order import Order
    from spq_graph.workbench.data import Data
    from spq_graph.workbench.opening import Opening

    # The embedded model shows what few bits cost, where nothing else was asked for.
    plain = source == "reference" and recipe is None and preset is None
    shown = bits or ([8, 6] if plain else [])
    given = load_recipe(
        recipe,
        preset=preset,
        bits=shown[0] if shown else None,
        high_precision=high_precision,
        spike_ratio=spike_ratio,
        target=target,
        keep=tuple(keep) if keep else None,
        remedies=wished(remedy or (), no_remedy or ()),
        quantize_lm_head=quantize_lm_head or None,
        head=head,
        embedding=embedding,
        seed=seed,
        sample_chat=False if no_chat else None,
        calibration_tokens=calibration_tokens,
    )
    if no_eval:
        unused("with --no-eval", text=text, max_eval_tokens=max_eval_tokens, ladder=ladder)
    elif text is None and source != "reference":
        unused("without --text FILE", max_eval_tokens=max_eval_tokens, ladder=ladder)
    if ranges is not None and calibration is None:
        unused("where --ranges were measured, without --calibration FILE", calibration_tokens=calibration_tokens)
    if calibration is not None or ranges is not None:
        unused("where --calibration or --ranges is given, since nothing is sampled", no_chat=no_chat)
    opening = Opening(source, tokenizer, bos, window, o.to_bytes(memory_limit), allow_no_glu, dask)
    data = Data(calibration, ranges, text, max_eval_tokens)
    order = Order(opening, out, given, data, not no_eval and (ladder or True), tuple(shown[1:]), force, not no_bench)
    if dry_run:
        _forecast(order, as_json=as_json)
    else:
        _fulfil(order, as_json=as_json)


def _forecast(order: Order, *, as_json: bool) -> None:
    from spq_graph.jobs.forecast import forecast
    from spq_graph.views.results import forecast_in_words

    found = forecast(order, steps=steps())
    answer(found.to_dict(), forecast_in_words(found), as_json=as_json)


def _fulfil(order: Order, *, as_json: bool) -> None:
    from spq_graph.jobs.quantize import fulfil
    from spq_graph.views.results import show_outcome

    made = fulfil(order, command=shlex.join(["spq-graph", *map(_shareable, sys.argv[1:])]), steps=steps())
    if as_json:
        print_json(made.to_dict())
    else:
        show_outcome(made, Console())


def _shareable(argument: str) -> str:
    """An argument as it may be shown to others: of a path from elsewhere than below the working directory its name."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    elsewhere = value.startswith(("/", "~", "../")) or Path(value).is_absolute()
    return f"{option}{equals}{Path(value).name or '.'}" if elsewhere else argument


def export(
    source: o.Source,
    out: o.Out,
    opset: Annotated[int, typer.Option(min=18, max=24, help="ONNX operator set")] = 21,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="without keys and values as inputs and outputs")] = False,
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """A Hugging Face folder to ONNX, with KV cache."""
    from spq_graph.jobs.export import export as run
    from spq_graph.views.results import exported_in_words

    found = run(source, out, opset=opset, cache=not no_cache, force=force, steps=steps())
    answer(found.to_dict(), exported_in_words(found), as_json=as_json)


def calibrate(
    model: o.Source,
    out: Annotated[Path, typer.Option("--out", "-o", help="ranges to write (JSON, arrays beside it)", metavar="FILE")],
    calibration: o.Calibration = None,
    calibration_tokens: o.CalibrationTokens = None,
    tokenizer: o.Tokenizer = None,
    shard: Annotated[str | None, typer.Option(help="I/N: the I-th of N shards of the sequences, from 0")] = None,
    merge: Annotated[
        list[Path] | None, typer.Option(help="merge these ranges files instead of measuring (repeatable)")
    ] = None,
    no_chat: o.NoChat = False,
    seed: o.Seed = None,
    bos: o.Bos = False,
    window: o.Window = None,
    memory_limit: o.MemoryLimit = None,
    dask: o.Dask = None,
    allow_no_glu: o.AllowNoGlu = False,
    as_json: o.Json = False,
) -> None:
    """Measure the ranges of every site's input, or merge shards that were measured apart."""
    from spq_graph.jobs import calibrate as job
    from spq_graph.views.results import ranges_in_words
    from spq_graph.workbench.opening import Opening

    if merge:
        model_options = {
            "tokenizer": tokenizer,
            "bos": bos,
            "window": window,
            "memory_limit": memory_limit,
            "dask": dask,
        }
        measuring = {"calibration": calibration, "calibration_tokens": calibration_tokens, "shard": shard}
        drawing = {"no_chat": no_chat, "seed": seed}
        unused("where ranges are merged", **measuring, **drawing, **model_options, allow_no_glu=allow_no_glu)
        ranges = job.merge(merge, out)
    else:
        if calibration is not None:
            unused("where --calibration names the data, since nothing is sampled", seed=seed, no_chat=no_chat)
        ranges = job.calibrate(
            Opening(model, tokenizer, bos, window, o.to_bytes(memory_limit), allow_no_glu, dask),
            out,
            calibration=calibration,
            tokens=calibration_tokens,
            seed=seed or 0,
            chat=not no_chat,
            shard=shard,
            steps=steps(),
        )
    answer(ranges.to_dict(), ranges_in_words(ranges), as_json=as_json)


def plan(
    model: o.Source,
    ranges: Annotated[Path, typer.Argument(help="what `calibrate` wrote", metavar="RANGES")],
    out: Annotated[Path, typer.Option("--out", "-o", help="plan to write", metavar="FILE")],
    preset: o.PresetName = None,
    recipe: o.RecipeFile = None,
    bits: o.Bits = None,
    calibration: o.Calibration = None,
    tokenizer: o.Tokenizer = None,
    high_precision: o.HighPrecision = None,
    keep: o.Keep = None,
    remedy: o.Remedy = None,
    no_remedy: o.NoRemedy = None,
    spike_ratio: o.SpikeRatio = None,
    target: o.Target = None,
    quantize_lm_head: o.QuantizeLmHead = False,
    head: o.Head = None,
    embedding: o.Embedding = None,
    bos: o.Bos = False,
    window: o.Window = None,
    memory_limit: o.MemoryLimit = None,
    allow_no_glu: o.AllowNoGlu = False,
    as_json: o.Json = False,
) -> None:
    """Decide. With --calibration sites are chosen by measured KL, without it by their ratio."""
    from spq_graph.documents.recipe import load_recipe
    from spq_graph.documents.remedies import wished
    from spq_graph.documents.tables import printable
    from spq_graph.jobs.plan import plan as run
    from spq_graph.views.made import spike_table
    from spq_graph.views.remedied import remedies
    from spq_graph.workbench.opening import Opening

    if calibration is None:
        unused("without --calibration FILE", bos=bos)
    given = load_recipe(
        recipe,
        preset=preset,
        bits=bits,
        high_precision=high_precision,
        spike_ratio=spike_ratio,
        target=target,
        keep=tuple(keep) if keep else None,
        remedies=wished(remedy or (), no_remedy or ()),
        quantize_lm_head=quantize_lm_head or None,
        head=head,
        embedding=embedding,
    )
    opening = Opening(model, tokenizer, bos, window, o.to_bytes(memory_limit), allow_no_glu)
    made = run(opening, out, given, ranges=ranges, calibration=calibration, steps=steps())
    if as_json:
        print_json(made.to_dict())
    else:
        Console().print(spike_table(made))
        for said in remedies(made):
            typer.echo(said)
        if made.calibration.remark is not None:
            typer.echo(printable(f"! {made.calibration.remark}"))
        typer.echo(printable(f"plan written to {out}"))


def apply(
    model: Annotated[Path, typer.Argument(help="the .onnx file that the plan was made for", metavar="MODEL")],
    plan_file: Annotated[Path, typer.Argument(help="plan.json", metavar="PLAN")],
    out: o.Out,
    target: o.Target = None,
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """Apply a plan, for its own target or another, and prove that every site runs as planned."""
    from spq_graph.jobs.apply import apply as run
    from spq_graph.views.results import applied_in_words

    found = run(model, out, plan_file, target=target, force=force, steps=steps())
    answer(found.to_dict(), applied_in_words(found), as_json=as_json)
