"""What quantizing takes: every step of `quantize` without a ladder, beside plain inference of the calibration data.

Bare inference (one session over the exported file, every batch run, logits dropped) comes before and after `quantize`,
so that a machine that slows down slows both down; each is a process of its own. What is not allowed to grow is the time
beyond the export, in multiples of the bare inference; processor seconds stand beside wall time, for machines that have
other work to do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
WIKITEXT = ROOT.parent / "shared" / "data" / "wikitext2" / "valid.txt"
TARGET = 4.0  # times bare inference, beyond the export
EXPORT = ("unpack", "export")  # steps


class Timer:
    """Wall and processor time of a block."""

    def __enter__(self) -> Timer:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.taken = {
            "seconds": time.perf_counter() - self._start[0],
            "cpu_seconds": time.process_time() - self._start[1],
        }


def prepare(source: str, data: str, tokens: str, work: str) -> dict[str, Any]:
    """Export the model and cut the data as `quantize` does, once for all rounds of bare inference."""
    import numpy as np

    from spq_graph import Opening, export
    from spq_graph.workbench.data import calibration_data

    model = export(source, Path(work) / "float").model
    with Opening(model, tokenizer=model.parent).open() as bench:
        rows = calibration_data(bench, data, int(tokens))
    np.savez(Path(work) / "rows.npz", ids=rows.ids, mask=rows.mask)
    return {"tokens": rows.tokens, "window": rows.ids.shape[1]}


def bare(work: str) -> dict[str, float]:
    """Load the session and run every batch."""
    import numpy as np

    from spq_graph.runtime.measures.calibrate import batches_without_padding
    from spq_graph.runtime.sessions.session import Runner
    from spq_graph.runtime.text.sequences import Sequences

    rows = np.load(Path(work) / "rows.npz")
    sequences = Sequences(rows["ids"], rows["mask"])
    with Timer() as run:
        runner = Runner(Path(work) / "float" / "model.onnx")
        for ids in batches_without_padding(sequences, *runner.fixed_shape):
            runner.run(ids, np.ones_like(ids))
    return run.taken


def quantize(source: str, data: str, tokens: str, work: str) -> dict[str, Any]:
    """All of it but the ladder, by step."""
    from spq_graph import Data, Recipe, Steps
    from spq_graph import quantize as run

    cpu: dict[str, float] = {}
    begun: dict[str, float] = {}

    def watch(label: str, done: int, total: int) -> None:
        begun.setdefault(label, time.process_time())

    def ended(label: str, seconds: float | None) -> None:
        cpu[[*steps.seconds][-1]] = time.process_time() - begun.pop(label)

    steps = Steps(watch=watch, ended=ended)
    recipe = Recipe(calibration_tokens=int(tokens))
    with Timer() as whole:
        made = run(
            source, Path(work) / "out", recipe, data=Data(data), ladder=False, bench=False, force=True, steps=steps
        )
    by_step = {name: {"seconds": seconds, "cpu_seconds": cpu[name]} for name, seconds in steps.seconds.items()}
    search = made.plan.search
    return {**whole.taken, "steps": by_step, "evaluations": search.evaluations, "kept": len(made.plan.kept)}


STEPS = {"prepare": prepare, "bare": bare, "quantize": quantize}


def worker(*arguments: object) -> dict[str, Any]:
    """Run one function of this file in a process of its own, and return what it prints."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, __file__, "--worker", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def beyond(quantized: dict[str, Any], bare_taken: dict[str, float], measure: str) -> float:
    """What all but the export takes, in multiples of the bare inference."""
    export = sum(quantized["steps"].get(name, {measure: 0.0})[measure] for name in EXPORT)
    return float((quantized[measure] - export) / bare_taken[measure])


def measure(source: str, data: Path, tokens: int, rounds: int) -> dict[str, Any]:
    """Bare inference, and quantizing between two of them, so many times."""
    with tempfile.TemporaryDirectory(prefix="spq-graph-bench-") as work:
        setting = worker("prepare", source, data, tokens, work)
        bares, quantized = [worker("bare", work)], []
        for number in range(rounds):
            quantized.append(worker("quantize", source, data, tokens, work))
            bares.append(worker("bare", work))
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    from spq_graph.runtime.proof.health import processor

    typical = {key: statistics.median(one[key] for one in bares) for key in bares[0]}
    names = ("onnxruntime", "onnx", "onnx-ir", "numpy", "torch", "transformers")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "setting": {"source": Path(source).name, "data": data.name, **setting},
        "bare": typical,
        "quantize": quantized,
        "bares": bares,
        "times_bare": {
            key: round(statistics.median(beyond(one, typical, key) for one in quantized), 2) for key in typical
        },
    }


def show(report: dict[str, Any]) -> None:
    """Print the steps of the last round, and whether the target is met."""
    from rich.console import Console
    from rich.table import Table

    setting, last, base = report["setting"], report["quantize"][-1], report["bare"]
    table = Table("", "s", "x bare", "CPU s", "x bare", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, taken in {"bare inference": base, **last["steps"], "all": last}.items():
        cells = [f(taken[key]) for key in base for f in ("{:.1f}".format, lambda v, key=key: f"{v / base[key]:.2f}")]
        table.add_row(name, *cells)
    console = Console()
    console.print(
        f"quantize {setting['source']} without ladder, calibrated on {setting['tokens']} tokens of {setting['data']}; "
        f"{last['evaluations']} evaluations, {last['kept']} sites kept\n"
        f"{report['device']}, {report['cores']} cores, load {report['load']:.1f}; onnxruntime "
        f"{report['versions']['onnxruntime']}, Python {report['versions']['python']}; {report['date']}\n",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    times = report["times_bare"]
    verdict = "met" if times["seconds"] <= TARGET else "missed"
    console.print(
        f"\nTarget {verdict}: beyond the export {times['seconds']} times bare inference, {times['cpu_seconds']} times "
        f"in processor seconds; {TARGET:g} allowed",
        soft_wrap=True,
    )


def main() -> None:
    """Measure, print, and write the figures to results/."""
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(STEPS[sys.argv[2]](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="?", default="reference", help="as `quantize` takes it (default: embedded)")
    embedded = ROOT / "models" / "reference" / "evaluation.txt"
    text = WIKITEXT if WIKITEXT.is_file() else embedded
    parser.add_argument("--data", type=Path, default=text, help="UTF-8 text to calibrate on")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the figures")
    options = parser.parse_args()
    report = measure(options.source, options.data, options.tokens, options.rounds)
    show(report)
    options.out.mkdir(parents=True, exist_ok=True)
    name = Path(options.source).name.partition(".")[0].lower()
    path = options.out / f"quantize-time-{name}-{report['date']}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"figures written to {path}")


if __name__ == "__main__":
    main()
