"""Quantize a model that is larger than memory, and say how much memory that took.

    python benchmarks/large.py 8b --save

makes an 8B-shaped LLaMA with random float16 weights (16 GB), quantizes it on one sequence, and removes both. Anonymous
memory is what counts: pages of files that are mapped can be dropped at any time. Linux only.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.keeping import keep
from benchmarks.shaped import SHAPES, Shape, write

TOKENS = 128


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command went.

    Attributes:
        status: its exit status.
        seconds: wall time.
        peak_anonymous_bytes: the most memory it held that is no mapped file, sampled a hundred times a second.
    """

    status: int
    seconds: float
    peak_anonymous_bytes: int


def sampled(command: Sequence[str]) -> Ran:
    """Run a command and watch its memory."""
    start, peak = time.perf_counter(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.01)
    return Ran(process.returncode, time.perf_counter() - start, peak)


def anonymous_bytes(pid: int) -> int:
    """Anonymous resident memory of a process; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(found[0]) * 1024 if found else 0


def quantized(shape: Shape, folder: Path, *options: str, tokens: int = TOKENS) -> Ran:
    """Write a model of a shape, and quantize it on one sequence of random tokens."""
    model = write(shape, folder / "model.onnx")
    ids = np.random.default_rng(0).integers(0, shape.vocabulary, (1, tokens))
    np.savez(folder / "ids.npz", input_ids=ids)
    return sampled(
        [
            sys.executable,
            "-m",
            "spq_graph",
            "quantize",
            str(model),
            "-o",
            str(folder / "out"),
            "--no-eval",
            "--no-bench",
            "--calibration",
            str(folder / "ids.npz"),
            *options,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="?", default="8b", choices=sorted(SHAPES))
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results/")
    parser.add_argument("--folder", type=Path, help="where there is room for one and a half times the model")
    given, options = parser.parse_known_args()
    shape = SHAPES[given.shape]
    folder = Path(tempfile.mkdtemp(prefix="spq-graph-large-", dir=given.folder))
    try:
        ran = quantized(shape, folder, *options)
        if ran.status:
            sys.exit(ran.status)
        report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
        search = json.loads((folder / "out" / "plan.json").read_text(encoding="utf-8"))["search"]
    finally:
        shutil.rmtree(folder)
    facts = {
        "shape": asdict(shape),
        "largest_tensor_bytes": shape.largest,
        "options": options,
        "tokens": TOKENS,
        "source_bytes": report["source_bytes"],
        "bytes": report["bytes"],
        **asdict(ran),
        "steps": report["seconds"],
        "search": search,
        "environment": report["environment"],
    }
    print(f"{report['source_bytes'] / 1e9:.1f} GB became {report['bytes'] / 1e9:.1f} GB in {ran.seconds:.0f} s")
    peak = ran.peak_anonymous_bytes
    print(f"anonymous memory: {peak / 1e9:.2f} GB at most, {peak / shape.largest:.1f} times the largest tensor")
    if given.save:
        print(keep(f"large-{given.shape}", **facts))


if __name__ == "__main__":
    main()
