"""What `doctor` found, in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spq_graph.documents.examination import Examination, Holds, Probed, ProbeStatus
from spq_graph.terms.kernels import OPERATORS
from spq_graph.terms.targets import PROFILES


def show(found: Examination, console: Console) -> None:
    """Print an examination."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, version in found.versions.items():
        table.add_row(name, Text(version))
    machine, library = found.machine, found.library
    table.add_row("processor", Text(f"{machine.processor}, {machine.cores} cores"))
    table.add_row("", Text(", ".join(machine.instruction_sets) or "instruction sets are not known here"))
    for gpu in machine.gpus:
        table.add_row("GPU", Text(f"{gpu.name}, {gpu.architecture}, driver {gpu.driver}"))
    if not machine.gpus:
        table.add_row("GPU", "none")
    table.add_row("providers", Text(", ".join(p.removesuffix("ExecutionProvider") for p in machine.providers)))
    table.add_row("operator library", Text(library.path or "none", overflow="fold"))
    if library.build is not None:
        table.add_row("", Text(f"{library.build.isa}, of {', '.join(library.build.available)}"))
        table.add_row("", Text("with CUDA kernels" if library.build.cuda else "no CUDA kernels"))
    if library.problem:
        table.add_row("", Text(library.problem, style="yellow", overflow="fold"))
    console.print(table)
    for warning in found.warnings:
        console.print(Text(f"! {warning}", style="yellow"))
    for target, by_precision in found.targets.items():
        title = f"target {target}: {PROFILES[target].device}"
        ran = Table("precision", "runs as", title=title, title_justify="left", box=None)
        if found.absent[target]:
            console.print(Text(f"target {target}: {found.absent[target]}", style="yellow"))
        if target in found.holds:
            console.print(Text(_held(found.holds[target]), style="dim"))
        for precision, probed in by_precision.items():
            ran.add_row(precision, Text(_in_words(probed), style="" if probed.status is ProbeStatus.RAN else "yellow"))
        console.print(ran)


def _held(holds: Holds) -> str:
    oldest, newest = holds.opsets
    opsets = f"opset {oldest} to {newest}" if newest is not None else f"opset {oldest} and later"
    counts = [f"{count or 'those'} of {domain or 'ONNX'}" for domain, count in holds.operators.items()]
    return f"takes graphs of {opsets}, operators: {', '.join(counts)}"


def _in_words(probed: Probed) -> str:
    if probed.status is ProbeStatus.FUNCTION:
        speed = "float32 speed and memory" if probed.kernel is None else f"{probed.kernel}, and slower"
        return f"the function in the file: right, in {speed}"
    return f"spq::{probed.kernel}, the operator library" if probed.kernel in OPERATORS else probed.name
