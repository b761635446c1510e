"""What calibration costs: ours, plain inference of the same batches, and ONNX Runtime's own MinMax calibrator.

Every measurement is a process of its own, so that peak memory means something, and the three take turns, so that a
machine that slows down slows all of them down. What is timed is loading the session and running every batch; building
the instrumented graph stands beside it. Medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
WIKITEXT = ROOT.parent / "shared" / "data" / "wikitext2" / "valid.txt"
TARGET = 1.3  # times plain inference, in time and in memory
IMPORTS = (
    "onnxruntime.quantization.calibrate",
    "spq_graph.passes.observe",
    "spq_graph.passes.pieces.split",
    "spq_graph.runtime.measures.calibrate",
)
LABELS = {"plain": "plain inference", "ours": "spq-graph", "minmax": "onnxruntime MinMax"}


# The workers import what they need themselves: the parent has to stay small, because a child starts with its peak.


def prepare(source: str, data: Path, tokens: int, work: Path) -> dict[str, Any]:
    """Export the model and cut the data into full windows, once for all measurements."""
    import numpy as np

    from spq_graph.models.export import export_folder
    from spq_graph.models.source import resolve
    from spq_graph.runtime.measures.calibrate import BATCH_TOKENS
    from spq_graph.runtime.text.reading import load_sequences
    from spq_graph.runtime.text.tokenizer import TextTokenizer

    found = resolve(source)
    window = min(found.max_length or 256, 256)
    tokenizer = TextTokenizer.load(found.path)
    rows = load_sequences(data, tokenizer, window=window, bos=False, vocab_size=found.vocab_size, max_tokens=tokens)
    ids = rows.ids[rows.mask.all(axis=1)]
    np.save(work / "ids.npy", ids)
    export_folder(found.path, work / "model.onnx")
    return {
        "model": found.origin,
        "data": data.name,
        "tokens": ids.size,
        "window": window,
        "batch": BATCH_TOKENS // window,
    }


def batches(work: Path) -> Any:
    """The rows as Sequences, as every method takes them, with all modules loaded that any of the methods needs.

    What a process imports is then the same for all, and the difference is what the method does.
    """
    import numpy as np

    from spq_graph.runtime.text.sequences import Sequences

    for name in IMPORTS:
        import_module(name)
    ids = np.load(work / "ids.npy")
    return Sequences(ids, np.ones_like(ids))


def plain(work: Path) -> dict[str, float]:
    """Inference of every batch, logits fetched and dropped."""
    from spq_graph.runtime.measures.calibrate import batch_size
    from spq_graph.runtime.sessions.session import Runner

    sequences = batches(work)
    with Timer() as run:
        runner = Runner(work / "model.onnx")
        for ids, mask in sequences.batches(batch_size(runner, sequences)):
            runner.run(ids, mask)
    return run.facts(build=0.0)


def ours(work: Path) -> dict[str, float]:
    """Ranges of every site's input, as `spq-graph calibrate` measures them."""
    from spq_graph.passes.canon.canonicalize import Canonicalize
    from spq_graph.passes.files.read import load_graph
    from spq_graph.passes.find.identify import identify
    from spq_graph.passes.observe import FINITE_CHECK, Observe
    from spq_graph.passes.pieces.split import split
    from spq_graph.runtime.measures.calibrate import Guard, Observed, collect_ranges
    from spq_graph.terms.errors import SpqError

    sequences = batches(work)
    with Timer() as build:
        graph = load_graph(work / "model.onnx")
        Canonicalize()(graph)
        observe = Observe([site.input for site in identify(graph).sites])
        observe(graph)
        model = split(graph, work / "model.onnx")
    probes = [(probe.value, probe.outputs) for probe in observe.probes]
    with Timer() as run:
        observed = Observed(model, probes, FINITE_CHECK, "")
        ranges = collect_ranges(observed, sequences, Guard(lambda *_: SpqError("")))
    assert ranges.tokens == sequences.tokens
    return run.facts(build=build.seconds)


def minmax(work: Path) -> dict[str, float]:
    """Minimum and maximum of what MatMuls read and write, by onnxruntime.quantization."""
    import numpy as np
    from onnxruntime.quantization.calibrate import CalibrationDataReader, MinMaxCalibrater

    from spq_graph.runtime.measures.calibrate import BATCH_TOKENS

    sequences = batches(work)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = sequences.batches(max(1, BATCH_TOKENS // sequences.ids.shape[1]))

        def get_next(self) -> dict[str, Any] | None:
            ids, mask = next(self.rows, (None, None))
            if ids is None:
                return None
            positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
            # The cache is empty: each batch is a beginning.
            inputs = calibrater.infer_session.get_inputs()
            past = {i.name: np.zeros((len(ids), i.shape[1], 0, i.shape[3]), np.float32) for i in inputs[3:]}
            return {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}

    with Timer() as build:
        calibrater = MinMaxCalibrater(work / "model.onnx", ["MatMul"], str(work / "augmented.onnx"))
        calibrater.augment_graph()
    with Timer() as run:
        calibrater.create_inference_session()
        calibrater.collect_data(Reader())
    return run.facts(build=build.seconds)


METHODS: dict[str, Callable[[Path], dict[str, float]]] = {"plain": plain, "ours": ours, "minmax": minmax}


class Timer:
    """Wall and processor time of a block."""

    def __enter__(self) -> Timer:
        self._start = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start[0]
        self.cpu_seconds = time.process_time() - self._start[1]

    def facts(self, *, build: float) -> dict[str, float]:
        unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "build": build, "peak_rss_bytes": peak}


def worker(*arguments: object) -> dict[str, Any]:
    """Run one step of this file in a process of its own, and return what it prints."""
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


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """By method and measure."""
    return {
        method: {key: statistics.median(taken[method][key] for taken in rounds) for key in rounds[0][method]}
        for method in METHODS
    }


def show(report: dict[str, Any]) -> None:
    """Print the table, and whether the target is met."""
    from rich.console import Console
    from rich.table import Table

    found, base = report["medians"], report["medians"]["plain"]
    setting = report["setting"]
    table = Table("", "s", "x plain", "CPU s", "x plain", "peak MB", "x plain", "build s", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for method, label in LABELS.items():
        row = found[method]
        cells = [label]
        for key, scale in (("seconds", 1), ("cpu_seconds", 1), ("peak_rss_bytes", 1e6)):
            cells += [f"{row[key] / scale:.4g}", f"{row[key] / base[key]:.2f}"]
        table.add_row(*cells, f"{row['build']:.2f}")
    console = Console()
    console.print(
        f"Calibration of {setting['model']} on {setting['tokens']} tokens of {setting['data']}, "
        f"{setting['batch']} rows of {setting['window']} a batch, medians of {report['rounds']} rounds\n"
        f"{report['device']}, {report['cores']} cores, load {report['load']:.1f}; onnxruntime "
        f"{report['versions']['onnxruntime']}, Python {report['versions']['python']}; {report['date']}\n",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table)
    ratios = [found["ours"][key] / base[key] for key in ("seconds", "peak_rss_bytes")]
    verdict = "met" if max(ratios) <= TARGET else "missed"
    console.print(
        f"\nTarget {verdict}: {ratios[0]:.2f} times in time, {ratios[1]:.2f} times in memory; {TARGET} allowed"
    )


def measure(source: str, data: Path, tokens: int, rounds: int) -> dict[str, Any]:
    """Take all measurements in turns."""
    with tempfile.TemporaryDirectory(prefix="spq-graph-bench-") as work:
        setting = worker("prepare", source, data, tokens, work)
        taken = []
        for number in range(rounds):
            order = [*METHODS][number % 3 :] + [*METHODS][: number % 3]  # nobody is always first
            taken.append({method: worker(method, work) for method in order})
            print(f"round {number + 1} of {rounds}", file=sys.stderr)
    from spq_graph.runtime.proof.health import processor  # now that no child starts with the size that this brings

    names = ("onnxruntime", "onnx", "onnx-ir", "numpy")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {"python": platform.python_version()} | {name: version(name) for name in names},
        "setting": setting,
        "rounds": rounds,
        "medians": medians(taken),
        "taken": taken,
    }


def main() -> None:
    """Measure, print, and write the figures to results/."""
    if sys.argv[1:2] == ["--worker"]:
        step, *rest = sys.argv[2:]
        if step == "prepare":
            source, data, tokens, work = rest
            print(json.dumps(prepare(source, Path(data), int(tokens), Path(work))))
        else:
            print(json.dumps(METHODS[step](Path(rest[0]))))
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", nargs="?", default="reference", help="Hugging Face folder (default: embedded)")
    embedded = ROOT / "models" / "reference" / "evaluation.txt"
    text = WIKITEXT if WIKITEXT.is_file() else embedded
    parser.add_argument("--data", type=Path, default=text, help="UTF-8 text")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the figures")
    options = parser.parse_args()
    report = measure(options.source, options.data, options.tokens, options.rounds)
    show(report)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"calibration-{report['date']}.json"
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"figures written to {path}")


if __name__ == "__main__":
    main()
