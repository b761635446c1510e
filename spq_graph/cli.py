"""The command line. Human text on standard output, or one JSON object with --json; progress on standard error."""

from __future__ import annotations

import atexit
import gc
import logging
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spq_graph import __version__, looking, verbs
from spq_graph import options as o
from spq_graph.terminal import errors, print_json, steps

app = typer.Typer(
    name="spq-graph",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Spike-aware quantization of GLU language models (LLaMA and its kind) for ONNX Runtime.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Shared by all verbs."""


@app.command()
def quantize(
    source: o.Source = "reference",
    out: o.Out = Path("spq-out"),
    bits: Annotated[list[int] | None, typer.Option(help="4 to 8, repeatable; OUT holds the first")] = None,
    recipe: o.RecipeFile = None,
    calibration: o.Calibration = None,
    calibration_tokens: o.CalibrationTokens = None,
    text: o.Text = None,
    max_eval_tokens: o.MaxEvalTokens = None,
    tokenizer: o.Tokenizer = None,
    high_precision: o.HighPrecision = None,
    keep: o.Keep = None,
    spike_ratio: o.SpikeRatio = None,
    target: o.Target = None,
    quantize_lm_head: o.QuantizeLmHead = False,
    seed: o.Seed = None,
    bos: o.Bos = False,
    window: o.Window = None,
    ranges: Annotated[
        Path | None,
        typer.Option(
            help="what `calibrate` measured of this model; sites are then chosen by KL only with --calibration",
            metavar="FILE",
        ),
    ] = None,
    memory_limit: o.MemoryLimit = None,
    force: o.Force = False,
    no_eval: Annotated[bool, typer.Option("--no-eval", help="no ladder")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be done, write nothing")] = False,
    allow_no_glu: o.AllowNoGlu = False,
    as_json: o.Json = False,
) -> None:
    """The whole way: export, find, measure, decide, insert, prove, evaluate, report."""
    from spq_graph.pipeline import Request
    from spq_graph.pipeline import quantize as run
    from spq_graph.recipe import load_recipe

    given = load_recipe(
        recipe,
        bits=bits[0] if bits else None,
        high_precision=high_precision,
        spike_ratio=spike_ratio,
        target=target,
        keep=tuple(keep) if keep else None,
        quantize_lm_head=quantize_lm_head or None,
        seed=seed,
        calibration_tokens=calibration_tokens,
    )
    widths = tuple(dict.fromkeys(bits or ((8, 6) if source == "reference" and recipe is None else (given.bits,))))
    for width in widths[1:]:
        load_recipe(None, bits=width)
    request = Request(
        source,
        out,
        given,
        widths,
        tokenizer,
        calibration,
        calibration_tokens,
        text,
        force,
        not no_eval,
        max_eval_tokens,
        bos,
        window,
        ranges,
        o.to_bytes(memory_limit),
        allow_no_glu,
        shlex.join(["spq-graph", *sys.argv[1:]]),
    )
    if dry_run:
        from spq_graph.dry_run import forecast

        found = forecast(request, steps())
        if as_json:
            print_json(found)
        else:
            typer.echo("\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in found.items()))
        return
    outcome = run(request, steps())
    if as_json:
        print_json({"out": str(outcome.out), "plan": outcome.plan.to_dict(), "report": outcome.report.to_dict()})
        return
    from spq_graph.console import ladder_table, spike_table, summary

    console = Console()
    if outcome.report.ladder:
        console.print(ladder_table(outcome.report, outcome.plan))
    console.print(spike_table(outcome.plan))
    console.print(summary(outcome.plan, outcome.report, outcome.out))


@app.command()
def export(
    source: o.Source,
    out: o.Out,
    opset: Annotated[int, typer.Option(min=18, max=24, help="ONNX operator set")] = 21,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="without keys and values as inputs and outputs")] = False,
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """A Hugging Face folder to ONNX, with KV cache."""
    from spq_graph.stages import export as run

    path = run(source, out, steps(), opset=opset, cache=not no_cache, force=force)
    if as_json:
        print_json({"model": str(path)})
    else:
        typer.echo(f"exported to {path}")


@app.command()
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
    seed: o.Seed = None,
    bos: o.Bos = False,
    window: o.Window = None,
    memory_limit: o.MemoryLimit = None,
    allow_no_glu: o.AllowNoGlu = False,
    as_json: o.Json = False,
) -> None:
    """Measure the ranges of every site's input, or merge shards that were measured apart."""
    from spq_graph.ranges import json_file
    from spq_graph.stages import calibrate as run

    ranges = run(
        model,
        out,
        steps(),
        calibration=calibration,
        tokens=calibration_tokens,
        tokenizer=tokenizer,
        shard=shard,
        merge=tuple(merge or ()),
        seed=seed or 0,
        bos=bos,
        window=window,
        memory=o.to_bytes(memory_limit),
        allow_no_glu=allow_no_glu,
    )
    out = json_file(out)
    facts = {"ranges": str(out), "sequences": ranges.sequences, "tokens": ranges.tokens, "values": len(ranges.values)}
    if as_json:
        print_json(facts)
    else:
        typer.echo(f"{facts['values']} values over {facts['tokens']} tokens, written to {out}")


@app.command()
def plan(
    model: o.Source,
    ranges: Annotated[Path, typer.Argument(help="what `calibrate` wrote", metavar="RANGES")],
    out: Annotated[Path, typer.Option("--out", "-o", help="plan to write", metavar="FILE")],
    bits: Annotated[int | None, typer.Option(help="4 to 8")] = None,
    recipe: o.RecipeFile = None,
    calibration: o.Calibration = None,
    tokenizer: o.Tokenizer = None,
    high_precision: o.HighPrecision = None,
    keep: o.Keep = None,
    spike_ratio: o.SpikeRatio = None,
    target: o.Target = None,
    quantize_lm_head: o.QuantizeLmHead = False,
    bos: o.Bos = False,
    window: o.Window = None,
    memory_limit: o.MemoryLimit = None,
    allow_no_glu: o.AllowNoGlu = False,
    as_json: o.Json = False,
) -> None:
    """Decide. With --calibration sites are chosen by measured KL, without it by their ratio."""
    from spq_graph.console import spike_table
    from spq_graph.recipe import load_recipe
    from spq_graph.stages import plan as run

    given = load_recipe(
        recipe,
        bits=bits,
        high_precision=high_precision,
        spike_ratio=spike_ratio,
        target=target,
        keep=tuple(keep) if keep else None,
        quantize_lm_head=quantize_lm_head or None,
    )
    made = run(
        model,
        ranges,
        out,
        given,
        steps(),
        calibration=calibration,
        tokenizer=tokenizer,
        bos=bos,
        window=window,
        memory=o.to_bytes(memory_limit),
        allow_no_glu=allow_no_glu,
    )
    if as_json:
        print_json(made.to_dict())
    else:
        Console().print(spike_table(made))
        typer.echo(f"plan written to {out}")


@app.command()
def apply(
    model: Annotated[Path, typer.Argument(help="the .onnx file that the plan was made for", metavar="MODEL")],
    plan_file: Annotated[Path, typer.Argument(help="plan.json", metavar="PLAN")],
    out: o.Out,
    target: o.Target = None,
    force: o.Force = False,
    as_json: o.Json = False,
) -> None:
    """Apply a plan, for its own target or another, and prove that every site runs as planned."""
    from spq_graph.console import applied
    from spq_graph.plan import Plan
    from spq_graph.stages import apply as run
    from spq_graph.targets import target_named

    named = target_named(target) if target is not None else None
    plan, executed = run(model, Plan.load(plan_file), out, steps(), target=named, force=force)
    fp8 = executed.fp8_run(site.node for site in plan.fp8_sites) if executed.absent is None else None
    if as_json:
        print_json(
            {
                "out": str(out),
                "target": plan.recipe.target,
                "absent": executed.absent,
                "executed": executed.ops,
                "providers": executed.providers,
                "fp8": fp8.model_dump(mode="json") if fp8 is not None else None,
            }
        )
    else:
        for line in applied(plan, executed.integer_kernels, fp8, executed.absent):
            typer.echo(line)
        typer.echo(f"written to {out}")


@app.command()
def doctor(as_json: o.Json = False) -> None:
    """Versions, operator library and instruction sets, and what every precision runs as on this machine."""
    from spq_graph.doctor import examine, show

    found = examine()
    if as_json:
        print_json(found.to_dict())
    else:
        show(found, Console())


app.command("eval")(verbs.evaluate)
app.command()(verbs.generate)
app.command()(verbs.bench)
for _verb in (looking.inspect, looking.diff, looking.view):
    app.command()(_verb)


def main() -> None:
    """Entry point of the `spq-graph` command."""
    from spq_graph.guard import errors_for_people, on_terminate

    atexit.register(gc.freeze)  # what is left goes with the process; to search it for cycles takes a third of a second
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, on_terminate)
    with errors_for_people(errors):
        app(prog_name="spq-graph")
