"""What a GPU run found, as a file of benchmarks/results and as rows of README and docs in place of "not executed".

    python -m benchmarks.gpu.summary RESULTS [RESULTS ...] [--write]

RESULTS are folders that `run.sh` wrote, earlier ones first: of a step that ran twice the better result counts, and of
two alike the later. Without --write it is only shown. A row changes where the steps that it tells of ended well.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.drive import GOOD, STEPS
from benchmarks.keeping import keep

ROOT = Path(__file__).resolve().parents[2]
NOT_YET = "**not executed on a GPU yet**"
NOTHING_SEEN = "No GPU was at hand yet, so nothing of this was seen."
Steps = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Run:
    """What was found, by step, on which device and when."""

    steps: Steps
    device: str
    date: str

    def done(self, *names: str) -> bool:
        """Whether these steps ended well on the device."""
        return all(self.steps.get(name, {}).get("result") == "done" for name in names)

    def records(self, step: str, key: str) -> list[dict[str, Any]]:
        """What a step found on its way that has a key."""
        return [one for one in self.steps.get(step, {}).get("records", ()) if key in one]

    @property
    def words(self) -> str:
        """Where and when."""
        return f"{self.device}, {self.date}"

    @property
    def close(self) -> str:
        """How near the small models' logits came."""
        found = [one["relative_l2"] for one in self.records("models", "relative_l2")]
        return f"{len(found)} models, logits within {max(found):.1%} of the CPU's"


@dataclass(frozen=True, slots=True)
class Row:
    """A place in a document that says what has not run.

    Attributes:
        file: of the repository.
        line: what the line begins with.
        old: what it says, on that line once.
        new: what a run makes of it.
        needs: steps that must have ended well.
    """

    file: str
    line: str
    old: str
    new: Callable[[Run], str]
    needs: tuple[str, ...]

    def in_place(self, text: str) -> list[str]:
        """The lines of a document that are meant and still say it."""
        return [line for line in text.splitlines() if line.startswith(self.line) and self.old in line]


def tables(run: Run) -> str:
    """Times of products and of the whole model, as Markdown."""
    parts = [f"Seen on {run.words} (`benchmarks/results/{file_of(run)}`)."]
    if products := run.records("operator", "seconds"):
        rows = sorted({one["M"] for one in products})
        head = f"K x N = {products[0]['K']} x {products[0]['N']}, times of a product in microseconds:"
        by = {(one["kernel"], one["M"]): f"{1e6 * one['seconds']:.1f}" for one in products}
        parts.append(f"{head}\n\n{_table(by, 'kernel', {m: f'M = {m}' for m in rows})}")
    if cases := run.records("whole", "case"):
        labels = list(dict.fromkeys(one["case"] for one in cases))
        by = {(o["file"], o["case"]): f"{1e3 * o['seconds']:.2f} ms, {o['over_fp16']:.2f} x" for o in cases}
        head = "A LLaMA of SmolLM2-135M's shape with random weights, and how many times as fast as in float16:"
        parts.append(f"{head}\n\n{_table(by, 'file', {label: label for label in labels})}")
    return "\n\n".join(parts)


def _table(cells: dict[tuple[str, Any], str], first: str, columns: dict[Any, str]) -> str:
    names = list(dict.fromkeys(name for name, _ in cells))
    lines = [f"| {first} | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cells.get((name, column), '–') for column in columns)} |" for name in names]
    return "\n".join(lines)


def file_of(run: Run) -> str:
    """The name of the file in benchmarks/results."""
    return f"{_slug(run)}-{run.date}.json"


def _slug(run: Run) -> str:
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", run.device.lower()).strip("-")


ROWS = (
    Row(
        "README.md",
        "| [Targets](docs/targets.md), [on a GPU](docs/gpu.md) |",
        f"`cuda` and `tensorrt`, {NOT_YET}",
        lambda run: f"`cuda`, executed on {run.words}; `tensorrt`, {NOT_YET}",
        ("models",),
    ),
    Row("docs/targets.md", "| `cuda` |", NOT_YET, lambda run: f"read back on {run.words}: {run.close}", ("models",)),
    Row(
        "docs/supported.md",
        "| FP8 operator, CUDA |",
        "**not verified**, they have not run on a GPU yet (`make test-gpu` is the test)",
        lambda run: f"run on {run.words}: {run.steps['tests']['said']} (`make test-gpu`)",
        ("product", "tests"),
    ),
    Row(
        "docs/supported.md",
        "| Targets |",
        "`cuda` and `tensorrt`: written",
        lambda run: f"`cuda`: executed on {run.words}, {run.close}. `tensorrt`: written",
        ("models",),
    ),
    Row(
        "docs/rivals.md",
        "| runs on |",
        "CUDA, TensorRT: written, not executed yet",
        lambda run: f"CUDA: executed on {run.device}; TensorRT: written, not executed yet",
        ("models",),
    ),
    Row(
        "CHANGELOG.md",
        "  and `benchmarks/gpu/summary.py`",
        "It has not run on a GPU yet.",
        lambda run: f"It ran on {run.words}.",
        ("product",),
    ),
    Row("docs/gpu.md", NOTHING_SEEN, NOTHING_SEEN, tables, ("machine",)),
)


def read(folders: Iterable[Path]) -> Run:
    """What runs found, together.

    Raises:
        SystemExit: nothing of it is of a GPU.
    """
    lines = [
        line
        for folder in folders
        for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]
    found = [json.loads(line) for line in lines]
    if any(one.get("stands_in") for one in found):
        raise SystemExit("these are of a stand-in on the CPU, and say nothing about a GPU")
    if all(one["result"] == "no device" for one in found):
        raise SystemExit("there was no device: nothing ran")
    steps: Steps = {}
    for one in found:
        before = steps.get(one["step"], {}).get("result") == "done"
        if one["result"] == "done" or not before:
            steps[one["step"]] = one
    smi = str(steps.get("machine", {}).get("nvidia_smi") or "")
    cuda = (steps.get("machine", {}).get("library") or steps.get("product", {})).get("cuda") or {}
    device = smi.partition(",")[0].strip() or cuda.get("device") or "a GPU"
    return Run(steps, device, max(one.get("date", "") for one in found))


def changed(run: Run, root: Path = ROOT) -> dict[Path, str]:
    """By file, what it says once its rows tell of a run."""
    found: dict[Path, str] = {}
    for row in ROWS:
        path = root / row.file
        text = found.get(path) or path.read_text(encoding="utf-8")
        if not run.done(*row.needs):
            print(f"{row.file}, {row.line}: stays, since {', '.join(row.needs)} did not all end well")
            continue
        for line in row.in_place(text):
            new = line.replace(row.old, row.new(run))
            print(f"{row.file}:\n- {line}\n+ {new}")
            text = text.replace(line, new)
        found[path] = text
    return found


def kept(run: Run) -> Path:
    """Write the file in benchmarks/results; device, driver and versions are those of step `machine`."""
    return keep(_slug(run), date=run.date, device=run.device, steps=run.steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true", help="write the file, and the rows into the documents")
    given = parser.parse_args()
    run = read(given.results)
    for name in STEPS:
        one = run.steps.get(name, {"result": "not run"})
        print(f"{name}: {one['result']}{'' if one['result'] in GOOD else ', ' + str(one.get('printed', ''))[-300:]}")
    texts = changed(run)
    if not given.write:
        return
    path = kept(run)
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    print(f"written: {path.relative_to(ROOT)}, {', '.join(str(file.relative_to(ROOT)) for file in texts)}")


if __name__ == "__main__":
    sys.exit(main())
