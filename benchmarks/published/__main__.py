"""A published model, quantized by us and by ONNX Runtime's own quantizers: loss, speed, size and time."""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from benchmarks.apart import CACHE, ROOT, run
from benchmarks.keeping import keep
from benchmarks.published import front, markers
from benchmarks.published.taking import MODELS, take
from benchmarks.published.workers import WORKERS

TEXTS = ROOT.parent / "shared" / "data" / "wikitext2"
LENGTHS, PAST, WINDOW = (128, 512), 128, 512
LABELS = {
    "fp32": "FP32",
    "ours": "spq-graph, kept by ratio",
    "ort_dynamic": "ONNX Runtime, dynamic INT8",
    "ort_weights_8": "ONNX Runtime, 8-bit weights (`MatMulNBits`)",
    "ort_weights_4": "ONNX Runtime, 4-bit weights (`MatMulNBits`)",
}


def make(model: Path, work: Path, calibration: Path, tokens: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Every method's model in a folder of its own, with what making it took; and why one is missing."""
    spq = [sys.executable, "-m", "spq_graph"]
    float_model = work / "fp32" / "model.onnx"
    told = [
        "--tokenizer",
        str(float_model.parent),
        "--calibration",
        str(calibration),
        "--calibration-tokens",
        str(tokens),
        "--window",
        str(WINDOW),
    ]
    commands = {
        "fp32": [*spq, "export", str(model), "-o", str(work / "fp32")],
        "ours": [*spq, "quantize", str(float_model), "-o", str(work / "ours"), *told, "--spike-ratio", "100"],
    }
    commands["ours"] += ["--no-eval", "--force"]
    for name in WORKERS:
        commands[name] = [
            sys.executable,
            "-m",
            "benchmarks.published.workers",
            name,
            str(float_model),
            str(work / name),
        ]
    made: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    for name, command in commands.items():
        if name == "fp32" and float_model.is_file():
            made[name] = {}
            continue
        print(f"making {LABELS[name]}", file=sys.stderr)
        if name in WORKERS:
            (work / name).mkdir(exist_ok=True)
            for file in (work / name).iterdir():
                file.unlink()
        try:
            made[name] = run(command, work)
        except RuntimeError as cause:
            if name not in WORKERS:
                raise
            skipped[name] = str(cause)
    return made, skipped


def measure(work: Path, names: list[str], text: Path, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Loss of every model against FP32 on the same tokens, and speed on one thread, in turns."""
    from spq_graph.runtime.measures import timing
    from spq_graph.runtime.measures.evaluate import score_text
    from spq_graph.runtime.sessions.session import Runner
    from spq_graph.workbench.opening import Opening

    files = {name: work / name / "model.onnx" for name in names}
    with Opening(files["fp32"], tokenizer=files["fp32"].parent, window=WINDOW).open(None, find_sites=False) as bench:
        sequences = bench.sequences(text, max_tokens=tokens, judged=True)
    others = [Runner(files[name]) for name in names[1:]]
    base, scores = score_text(Runner(files["fp32"]), others, sequences)
    del others
    runners = {name: Runner(path, threads=1) for name, path in files.items()}
    seconds = timing.in_turns(runners, LENGTHS, PAST, rounds, lambda done, total: None)
    rows: list[dict[str, Any]] = []
    for name, score in zip(names, (base, *scores), strict=True):
        times = {
            label: {
                "milliseconds": 1e3 * statistics.median(taken),
                "over_fp32": statistics.median(a / b for a, b in zip(seconds["fp32"][label], taken, strict=True)),
            }
            for label, taken in seconds[name].items()
        }
        loaded = timing.load_apart(files[name], "cpu", 1)
        rows.append(
            {
                "name": name,
                "perplexity": score.perplexity,
                "perplexity_stderr": score.perplexity_stderr,
                "kl": score.kl,
                "kl_stderr": score.kl_stderr,
                "top1": score.top1,
                "tokens": score.tokens,
                "bytes": sum(file.stat().st_size for file in files[name].parent.glob("model.onnx*")),
                "load_seconds": loaded.seconds,
                "resident_bytes": loaded.resident_bytes,
                "times": times,
            }
        )
    return rows


def page(rows: list[dict[str, Any]], skipped: dict[str, str]) -> str:
    """The table, and in words where we stand."""
    labels = [*rows[0]["times"]]
    lines = [f"| | perplexity | KL | MB | {' | '.join(labels)} | s to quantize |", "|" + "---|" * (5 + len(labels))]
    for row in rows:
        kl = "–" if row["name"] == "fp32" else f"{row['kl']:.4f} ± {row['kl_stderr']:.4f}"
        speeds = " | ".join(f"{row['times'][label]['over_fp32']:.2f}" for label in labels)
        taken = row["made"].get("seconds") if row["name"] != "fp32" else None
        spent = "–" if taken is None else f"{taken:.0f}"
        loss = f"{row['perplexity']:.2f} ± {row['perplexity_stderr']:.2f}"
        lines.append(f"| {LABELS[row['name']]} | {loss} | {kl} | {row['bytes'] / 1e6:.0f} | {speeds} | {spent} |")
    points = {
        label: [
            front.Point(row["name"], LABELS[row["name"]], row["kl"], row["times"][label]["over_fp32"])
            for row in rows[1:]
        ]
        for label in labels
    }
    lines += ["", *(f"- {said}" for said in front.sentences(points, ["ours"]))]
    lines += [f"- {LABELS[name]}: {reason}" for name, reason in skipped.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=[*MODELS], default="smollm2-135m")
    parser.add_argument("--calibration", type=Path, default=TEXTS / "valid.txt")
    parser.add_argument("--text", type=Path, default=TEXTS / "test_raw.txt", help="any plain text that a user has")
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=4096, help="evaluation tokens")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    for file in (given.calibration, given.text):
        if not file.is_file():
            parser.error(f"{file} is not there: pass --calibration and --text, two plain texts of prose")
    model = MODELS[given.model]
    source = take(model, CACHE / "published")
    print(f"{model.name}: licence {model.licence}", file=sys.stderr)
    work = source.parent / "work"
    work.mkdir(exist_ok=True)
    made, skipped = make(source, work, given.calibration.resolve(), given.calibration_tokens)
    rows = measure(work, [*made], given.text, given.tokens, given.rounds)
    from spq_graph.runtime.proof.health import processor
    from spq_graph.workbench.environment import environment

    rows = [row | {"made": made[row["name"]]} for row in rows]
    told = page(rows, skipped)
    kept = keep(
        f"published-{given.model}",
        command=f"python -m benchmarks.published --model {given.model}",
        calibration_tokens=given.calibration_tokens,
        processor=processor(),
        cores=os.cpu_count(),
        load=os.getloadavg()[0],
        environment=environment(),
        skipped=skipped,
        rows=rows,
    )
    head = f"{model.name}, {rows[0]['tokens']} tokens in windows of {WINDOW}; speed as times FP32, one thread."
    markers.write(ROOT / "docs" / "published.md", given.model, f"{head}\n\n{told}")
    print(told, kept, sep="\n")


if __name__ == "__main__":
    main()
