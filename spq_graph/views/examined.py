"""What `doctor` found, in the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spq_graph.documents.results import Examination
from spq_graph.terms.kernels import FP8_KERNEL
from spq_graph.terms.targets import PROFILES

NOT_HERE = "not executed here"


def show(found: Examination, console: Console) -> None:
    """Print an examination."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, version in found.versions.items():
        table.add_row(name, Text(version))
    machine, library = found.machine, found.library
    table.add_row("processor", Text(f"{machine['processor']}, {machine['cores']} cores"))
    table.add_row("", Text(", ".join(machine["instruction_sets"]) or "instruction sets are not known here"))
    for gpu in machine["gpus"]:
        table.add_row("GPU", Text(f"{gpu['name']}, {gpu['architecture']}, driver {gpu['driver']}"))
    if not machine["gpus"]:
        table.add_row("GPU", "none")
    table.add_row("providers", Text(", ".join(p.removesuffix("ExecutionProvider") for p in machine["providers"])))
    table.add_row("operator library", Text(library["path"] or "none", overflow="fold"))
    if library.get("isa"):
        table.add_row("", Text(f"{library['isa']}, of {', '.join(library['available'])}"))
        table.add_row("", Text("with CUDA kernels" if library["cuda"] else "no CUDA kernels"))
    if library["problem"]:
        table.add_row("", Text(library["problem"], style="yellow", overflow="fold"))
    console.print(table)
    for warning in found.warnings:
        console.print(Text(f"! {warning}", style="yellow"))
    for target, kernels in found.targets.items():
        title = f"target {target}: {PROFILES[target].device}"
        ran = Table("precision", "runs as", title=title, title_justify="left", box=None)
        if found.absent[target]:
            console.print(Text(f"target {target}: {found.absent[target]}", style="yellow"))
        for precision, kernel in kernels.items():
            ran.add_row(precision, Text(_in_words(kernel), style="" if not _falls_back(kernel) else "yellow"))
        console.print(ran)


def _falls_back(kernel: str) -> bool:
    return kernel == "function" or kernel.startswith(("error", NOT_HERE, "unsupported"))


def _in_words(kernel: str) -> str:
    if kernel == "function":
        return "the function in the file: right, in float32 speed and memory"
    return "spq::Fp8MatMul, the operator library" if kernel == FP8_KERNEL else kernel
