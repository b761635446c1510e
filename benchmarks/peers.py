"""Ours against onnxruntime quantize_static, ModelOpt and Quark: time and memory from a float model to an INT8 one.

Everyone gets the model of end_to_end.py (12 layers, 82 million parameters) and the same token ids, and quantizes as its
users would, without evaluation. A measurement is a process of its own, imports included, and all take turns, so that a
machine that slows down slows all of them down; medians over rounds. Peers live in environments of their own, made on
demand; one that cannot be installed, or fails, is named with the reason. The yardstick is bare inference of the same
batches, and one read and one write of the weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apart import CACHE, ROOT, python_of, run
from peer_report import LABELS, show
from peer_workers import LENGTH

WORKERS = Path(__file__).with_name("peer_workers.py")
# At most so many times the yardstick, and shares of wall time and memory of the fastest peer.
GOAL_BARE, GOAL_TIME, GOAL_MEMORY = 1.3, 0.5, 0.5
PINS = {line.partition("==")[0]: line for line in (ROOT / "constraints.txt").read_text().split() if "==" in line}
# What goes into each peer's environment, by call of pip; torch goes first and alone, so that it stays.
REQUIREMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "onnxruntime": ((PINS["onnxruntime"], PINS["onnx"], "sympy"),),
    "modelopt": ((PINS["torch"],), ("nvidia-modelopt[onnx]==0.47.0",)),
    "quark": ((PINS["torch"],), ("amd-quark==0.13", PINS["onnxruntime"])),
}
PACKAGES = ("amd-quark", "nvidia-modelopt", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "torch")


def commands(folder: Path, environments: Path, peers: Sequence[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What runs each method, but for the model and the folder to write; and why a peer has none."""
    worker = [str(WORKERS)]
    found = {
        "bare": [sys.executable, *worker, "bare", str(folder)],
        "ours": [sys.executable, "-m", "spq_graph", "quantize"],
    }
    skipped: dict[str, str] = {}
    for name in peers:
        try:
            found[name] = [str(python_of(name, REQUIREMENTS[name], environments)), *worker, name, str(folder)]
        except (RuntimeError, OSError) as cause:
            skipped[name] = str(cause)
    return found, skipped


def measure(name: str, command: list[str], folder: Path, source: Path) -> dict[str, float]:
    """Run one method on a copy of the model, since a peer writes to its input, and say what it took.

    Raises:
        RuntimeError: it failed; why.
    """
    with tempfile.TemporaryDirectory(prefix="run-", dir=folder) as place:
        model, out = Path(place) / "in" / "model.onnx", Path(place) / "out"
        model.parent.mkdir()
        for file in source.parent.glob("model.onnx*"):
            shutil.copyfile(file, model.with_name(file.name))
        if name == "ours":
            ids = str(folder / "ids.npz")
            rest = [str(model), "-o", str(out), "--calibration", ids, "--spike-ratio", "100", "--no-eval", "--no-bench"]
        else:
            out.mkdir()
            rest = [str(model), str(out)]
        taken = run([*command, *rest], Path(place))
        written = sum(f.stat().st_size for f in out.rglob("model.onnx*"))
        if not written:
            raise RuntimeError("failed: it wrote no model")
        return taken | {"output_bytes": written}


def in_turns(
    found: dict[str, list[str]], skipped: dict[str, str], rounds: int, folder: Path, source: Path
) -> list[dict[str, dict[str, float]]]:
    """All measurements; a peer that fails is skipped from then on, but the yardstick and ours must not fail."""
    taken: list[dict[str, dict[str, float]]] = []
    for number in range(rounds):
        row: dict[str, dict[str, float]] = {}
        names = [*found]
        for name in names[number % len(names) :] + names[: number % len(names)]:  # nobody is always first
            try:
                row[name] = measure(name, found[name], folder, source)
            except RuntimeError as cause:
                if name not in REQUIREMENTS:
                    raise SystemExit(f"{LABELS[name]}: {cause}") from None
                skipped[name] = str(cause)
                del found[name]
        taken.append(row)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return [{name: row[name] for name in found} for row in taken]


def medians(taken: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """By method and measure."""
    return {
        name: {key: statistics.median(row[name][key] for row in taken) for key in taken[0][name]} for name in taken[0]
    }


def goals(found: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """What was wanted, and what it came to, in wall time and in processor time, which other work disturbs less."""
    ours, plain = found["ours"], found["bare"]
    peers = [name for name in found if name in REQUIREMENTS]
    wanted = [("times bare inference, read and write", "seconds", "cpu_seconds", plain, GOAL_BARE)]
    if peers:
        fastest = min(peers, key=lambda name: found[name]["seconds"])
        wanted += [
            (f"of the time of {LABELS[fastest]}", "seconds", "cpu_seconds", found[fastest], GOAL_TIME),
            ("of its memory", "peak_rss_bytes", "peak_anonymous_bytes", found[fastest], GOAL_MEMORY),
        ]
    return [
        {
            "what": what,
            "measure": key,
            "ratio": ours[key] / base[key],
            "other_measure": other,
            "other_ratio": ours[other] / base[other] if base[other] else None,
            "goal": goal,
            "met": ours[key] <= goal * base[key],
        }
        for what, key, other, base, goal in wanted
    ]


def versions(found: dict[str, list[str]]) -> dict[str, dict[str, str]]:
    """What each peer's environment holds of what matters."""
    code = (
        "import json; from importlib.metadata import distributions\n"
        f"print(json.dumps({{n: d.version for d in distributions() if (n := d.metadata['Name']) in {PACKAGES}}}))"
    )
    told = {
        name: subprocess.run([found[name][0], "-c", code], capture_output=True, text=True, check=True).stdout
        for name in found
        if name in REQUIREMENTS
    }
    return {name: dict(sorted(json.loads(text).items())) for name, text in told.items()}


def main() -> None:
    """Measure, print, and keep the figures where that is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=128, help="sequences of 128 tokens to calibrate on")
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=[*REQUIREMENTS],
        default=[*REQUIREMENTS],
        help="those to compare with; all of them, if not told",
    )
    parser.add_argument("--environments", type=Path, default=CACHE / "peers", help="where the peers are installed")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "spq-graph-end-to-end",
        help="where end_to_end.py keeps its model",
    )
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spq-graph-bench-") as folder:
        commanded, skipped = commands(Path(folder), given.environments.resolve(), given.peers)
        run_prepare = [sys.executable, str(WORKERS), "prepare", folder, str(given.work), str(given.rows)]
        run(run_prepare, Path(folder))
        taken = in_turns(commanded, skipped, given.rounds, Path(folder), given.work / "model.onnx")
    from keeping import keep

    from spq_graph.runtime.proof.health import processor  # now that no child starts with the size that this brings
    from spq_graph.workbench.environment import environment

    found = medians(taken)
    report = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "rounds": given.rounds,
        "rows": given.rows,
        "environment": environment(),
        "versions": versions(commanded),
        "skipped": skipped,
        "medians": found,
        "goals": goals(found),
        "taken": taken,
    }
    show(report)
    if given.save:
        print(keep(f"peers-{given.rows}x{LENGTH}", command=f"python benchmarks/peers.py --rows {given.rows}", **report))


if __name__ == "__main__":
    main()
