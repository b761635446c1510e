"""A published model, quantized by us and by what a user would take instead: loss, speed, size, memory and time."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.apart import CACHE, ROOT, run
from benchmarks.keeping import keep
from benchmarks.published import markers, page, picture
from benchmarks.published.measuring import WINDOW, Bench, make, measure
from benchmarks.published.methods import METHODS, OURS
from benchmarks.published.taking import MODELS, take
from spq_graph.terms.errors import SpqError

TEXTS = ROOT.parent / "shared" / "data" / "wikitext2"
HEADLINE = "smollm2-135m"  # the model that the README shows


def prepare(source: Path, work: Path, calibration: Path, tokens: int, text: Path, judged: int) -> Any:
    """What all methods read, in `work`, and the sequences that loss is measured on."""
    import numpy as np

    from spq_graph.models.gguf import unpack
    from spq_graph.workbench.opening import Opening

    float_model, link = work / "fp32" / "model.onnx", work / "model.gguf"
    if not float_model.is_file():
        run([sys.executable, "-m", "spq_graph", "export", str(source), "-o", str(float_model.parent)], work)
    if not (work / "hf" / "tokenizer.json").is_file():
        shutil.rmtree(work / "hf", ignore_errors=True)
        (work / "hf").mkdir()
        unpack(source, work / "hf")
    link.unlink(missing_ok=True)
    link.symlink_to(source.resolve())
    with Opening(float_model, tokenizer=float_model.parent, window=WINDOW).open(None, find_sites=False) as bench:
        rows = bench.sequences(calibration, max_tokens=tokens)
        sequences = bench.sequences(text, max_tokens=judged, judged=True)
    np.savez(work / "ids.npz", input_ids=rows.ids[rows.mask.all(axis=1)])
    return sequences


def gather(bench: Bench, names: list[str], *, remake: bool) -> None:
    """Make and measure methods, and keep in `rows` beside them what came of each, or why nothing did."""
    for name in names:
        kept = bench.work / "rows" / f"{name}.json"
        made = json.loads(kept.read_text())["made"] if kept.is_file() else {}
        print(f"{METHODS[name].label}", file=sys.stderr)
        try:
            if name != "fp32" and (remake or not bench.made(name)):
                made = make(bench, name)
            row = measure(bench, name) | {"made": made}
        except (RuntimeError, OSError, SpqError) as cause:
            if name in ("fp32", *OURS):
                raise
            row = {"name": name, "skipped": str(cause), "made": made}
        kept.write_text(json.dumps(row, indent=1) + "\n")


def told(bench: Bench) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows that were measured on this text, now or before, and of every other method why it has none."""
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    for name in METHODS:
        kept = bench.work / "rows" / f"{name}.json"
        row = json.loads(kept.read_text()) if kept.is_file() else {}
        if row.get("text") == bench.text:
            rows.append(row)
        else:
            skipped[name] = row.get("skipped", "not run yet")
    return rows, skipped


def write(model: str, title: str, rows: list[dict[str, Any]], skipped: dict[str, str]) -> str:
    """The table and the picture into docs/published.md, and into README; returns the table."""
    by_label = page.points(rows)
    picture.write(ROOT / "docs" / f"published-{model}.svg", by_label, OURS)
    head = (
        f"{title}, {rows[0]['tokens']} tokens of text in windows of {WINDOW}; speed as times FP32, one thread, bold on "
        "the front."
    )
    shown = f"![Loss against speed, by method; the front is a line](published-{model}.svg)"
    table = page.table(rows, skipped)
    markers.write(ROOT / "docs" / "published.md", model, f"{head}\n\n{shown}\n\n{table}")
    if model == HEADLINE:
        markers.write(ROOT / "README.md", "published", page.headline(rows, ["prefill 128", "decode"]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=[*MODELS], default=HEADLINE)
    parser.add_argument("--calibration", type=Path, default=TEXTS / "valid.txt")
    parser.add_argument("--text", type=Path, default=TEXTS / "test_raw.txt", help="any plain text that a user has")
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=4096, help="evaluation tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--only", nargs="*", choices=[*METHODS], help="some, or none; others' figures are those of the last run"
    )
    parser.add_argument("--as-made", action="store_true", help="measure what an earlier run made")
    given = parser.parse_args()
    for file in (given.calibration, given.text):
        if not file.is_file():
            parser.error(f"{file} is not there: pass --calibration and --text, two plain texts of prose")
    model = MODELS[given.model]
    source = take(model, CACHE / "published")
    print(f"{model.name}: licence {model.licence}", file=sys.stderr)
    work = source.parent / "work"
    (work / "rows").mkdir(parents=True, exist_ok=True)
    calibration, tokens = given.calibration.resolve(), given.calibration_tokens
    sequences = prepare(source, work, calibration, tokens, given.text, given.tokens)
    bench = Bench(work, CACHE / "published" / "environments", calibration, tokens, sequences, given.rounds)
    gather(bench, [*METHODS] if given.only is None else given.only, remake=not given.as_made)
    from spq_graph.runtime.proof.health import processor
    from spq_graph.workbench.environment import environment

    rows, skipped = told(bench)
    results = keep(
        f"published-{given.model}",
        command=f"python -m benchmarks.published --model {given.model}",
        calibration_tokens=tokens,
        processor=processor(),
        cores=os.cpu_count(),
        environment=environment(),
        skipped=skipped,
        rows=rows,
    )
    print(write(given.model, model.name, rows, skipped), results, sep="\n")


if __name__ == "__main__":
    main()
