"""The command line. Human text on standard output, or one JSON object with --json; progress on standard error."""

from __future__ import annotations

import atexit
import gc
import io
import logging
import sys
from typing import Annotated

import typer
from rich.console import Console

from spq_graph import __version__
from spq_graph.cli import chatting, looking, making, running
from spq_graph.cli import options as o
from spq_graph.cli.terminal import Log, Quiet, Verbose, begin, errors, log_error, print_json, with_telling

app = typer.Typer(
    name="spq-graph",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Spike-aware quantization of GLU language models in ONNX: static W8A8, mixed precision where outliers are.",
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
    chatty: Verbose = False,
    quiet: Quiet = False,
    log_file: Log = None,
) -> None:
    """Shared by all verbs."""
    begin(verbose=chatty, quiet=quiet, log=log_file)


app.command()(with_telling(making.quantize))
app.command()(with_telling(making.export))
app.command()(with_telling(making.calibrate))
app.command()(with_telling(making.plan))
app.command()(with_telling(making.apply))


@app.command()
@with_telling
def doctor(as_json: o.Json = False) -> None:
    """Versions, operator library and instruction sets, and what every precision runs as on this machine."""
    from spq_graph.jobs.doctor import doctor as run
    from spq_graph.views.examined import show

    found = run()
    if as_json:
        print_json(found.to_dict())
    else:
        show(found, Console())


app.command("eval")(with_telling(running.evaluate))
app.command()(with_telling(running.generate))
app.command()(with_telling(chatting.chat))
app.command()(with_telling(running.bench))
for _verb in (looking.inspect, looking.verify, looking.diff, looking.view, looking.presets):
    app.command()(with_telling(_verb))


def main() -> None:
    """Entry point of the `spq-graph` command."""
    from spq_graph.cli.guard import errors_for_people
    from spq_graph.documents.interrupts import heard, watch

    atexit.register(gc.freeze)  # what is left goes with the process; to search it for cycles takes a third of a second
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    watch()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may hold bytes that are no text
    with errors_for_people(errors, log_error), heard():
        app(prog_name="spq-graph")
