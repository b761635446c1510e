"""The verbs that look at a model and change nothing: `inspect`, `verify`, `diff` and `view`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spq_graph.cli import options as o
from spq_graph.cli.terminal import answer, errors, print_json, steps, unused

_Inspected = Annotated[Path, typer.Argument(help="an .onnx file or an OUT folder", metavar="PATH")]
_Exportable = Annotated[
    str,
    typer.Argument(
        help="an .onnx file, an OUT folder, or what is exported aside: a Hugging Face folder, a GGUF, a Hub id",
        metavar="PATH",
    ),
]


def inspect(
    path: _Exportable,
    chosen: Annotated[str | None, typer.Argument(help="as --site", metavar="SITE", show_default=False)] = None,
    site: Annotated[str | None, typer.Option(help="one site, by key, its end, or glob", metavar="KEY")] = None,
    why: Annotated[bool, typer.Option("--why", help="reason and evidence in full, of one SITE or of all")] = False,
    unmatched: Annotated[bool, typer.Option("--unmatched", help="products that are no sites, and why")] = False,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="measure the file on this, without changing it: data as `quantize` takes them", metavar="FILE|SET"
        ),
    ] = None,
    calibration_tokens: o.CalibrationTokens = None,
    outliers: Annotated[
        bool,
        typer.Option(
            "--outliers", help="run one prompt: super weights, systematic outliers and massive activations, and where"
        ),
    ] = False,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="that prompt: text, or token ids where the model has no tokenizer",
            metavar="TEXT",
            show_default="the published one",
        ),
    ] = None,
    tokenizer: o.Tokenizer = None,
    bos: o.Bos = False,
    window: o.Window = None,
    as_json: o.Json = False,
) -> None:
    """Sites, roles, precision, reasons and evidence of a file, ours or not."""
    from spq_graph.jobs.inspect import inspect as run
    from spq_graph.terms.errors import UsageError
    from spq_graph.views.inspected import show_inspection
    from spq_graph.workbench.opening import Opening

    if chosen is not None and site is not None and chosen != site:
        raise UsageError("two sites were named", where=f"{chosen} and --site {site}", remedy="name one, or a glob")
    if calibration is None:
        unused("without --calibration FILE", calibration_tokens=calibration_tokens, window=window)
    if not outliers:
        unused("without --outliers", prompt=prompt)
        if calibration is None:
            unused("without --calibration FILE or --outliers", tokenizer=tokenizer, bos=bos)
    sought = prompt if outliers and prompt is not None else outliers
    found = run(
        Opening(path, tokenizer, bos, window),
        chosen or site,
        calibration=calibration,
        tokens=calibration_tokens,
        outliers=sought,
        steps=steps(),
    )
    if as_json:
        print_json(found.to_dict())
    else:
        show_inspection(found, Console(), why=why, unmatched=unmatched)


def verify(
    out: Annotated[Path, typer.Argument(help="an OUT folder", metavar="OUT")],
    model: Annotated[str, typer.Argument(help="what it was made of: as the MODEL of quantize", metavar="MODEL")],
    as_json: o.Json = False,
) -> None:
    """Whether a folder is what its plan makes of a model: every site, constant and node, as it lies on the disk."""
    from spq_graph.jobs.verify import verify as run
    from spq_graph.views.results import verified_in_words

    found = run(out, model, steps=steps())
    answer(found.to_dict(), verified_in_words(found), as_json=as_json)


def diff(
    a: Annotated[Path, typer.Argument(help="a plan.json, OUT folder or .onnx file", metavar="A")],
    b: Annotated[Path, typer.Argument(help="another", metavar="B")],
    as_json: o.Json = False,
) -> None:
    """What two plans or artifacts decide differently, and what came of it."""
    from spq_graph.jobs.compare import compare
    from spq_graph.views.inspected import show_difference

    found = compare(a, b)
    if as_json:
        print_json(found.to_dict())
    else:
        show_difference(found, Console())


def view(
    path: _Inspected,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="port to serve at (default: any)")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="only serve, and print the address")] = False,
) -> None:
    """Open a file in Netron, where that is installed."""
    from spq_graph.jobs.view import view as run
    from spq_graph.jobs.view import wait

    address = run(path, port=port, browse=not no_browser)
    typer.echo(f"{address}  (Ctrl+C ends it)")
    wait()


def presets(
    name: Annotated[str | None, typer.Argument(help="one of them, as a file for --recipe", metavar="NAME")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="what a recipe may hold, as JSON Schema")] = False,
    as_json: o.Json = False,
) -> None:
    """The recipes that come with the package, by name; each is a file that `--recipe` takes, too."""
    from spq_graph.jobs.presets import presets as run
    from spq_graph.jobs.presets import schema_of_recipes
    from spq_graph.views.results import presets_in_words

    if schema:
        if name is not None:
            errors.print(f"{name}: not used where the schema is printed", markup=False, highlight=False)
        print_json(schema_of_recipes())
        return
    found = run(name)
    if name is not None and not as_json:
        typer.echo(found[0].text, nl=False)
    else:
        answer({"presets": [one.to_dict() for one in found]}, presets_in_words(found), as_json=as_json)
