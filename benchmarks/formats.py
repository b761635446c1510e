"""What the formats of kept sites cost: the ladder on the reference model and on planted spikes of four sizes.

    python benchmarks/formats.py [--save]

For every model, the rows of the main job with its kept sites in FP8 E4M3, FP8 E5M2, FP8 weights only, 8-bit integer
weights and FP16, and what high precision `auto` and `fp8` choose. Perplexity as a multiple of FP32's, and KL.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from keeping import keep
from rich.console import Console
from rich.table import Table

from spq_graph import Data, Opening, Recipe, quantize
from spq_graph.documents.results import Outcome
from spq_graph.models.plant import plant_bos_spikes
from spq_graph.runtime.proof.health import processor
from spq_graph.runtime.sessions.library import library_info
from spq_graph.terms.rows import EVERYWHERE, FP32, RowId, RowKind
from spq_graph.terms.targets import PROFILES

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RATIOS = (50, 300, 5_000, 20_000)
ROWS = (EVERYWHERE, *(RowId(RowKind.SPIKE_AWARE, kept_in=high) for high in PROFILES["cpu"].compared))


def planted(work: Path) -> Iterator[tuple[str, Opening, Data]]:
    """stories260K with BOS spikes in two layers, calibrated and measured on different stories."""
    stories = json.loads((DATA / "tinystories" / "stories.json").read_text(encoding="utf-8"))
    for name, part in (("calibration", stories[:60]), ("text", stories[60:120])):
        (work / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    for ratio in RATIOS:
        plant_bos_spikes(DATA / "stories260K", work / f"planted-{ratio}", layers=(1, 3), ratio=ratio)
        opening = Opening(work / f"planted-{ratio}", window=256)
        yield (
            f"stories260K, planted {ratio}",
            opening,
            Data(calibration=work / "calibration.json", text=work / "text.json"),
        )


def reference() -> tuple[str, Opening, Data]:
    files = DATA / "wikitext2"
    data = Data(calibration=files / "valid.txt", text=files / "test.txt", max_eval_tokens=20_000)
    return "reference", Opening("reference"), data


def choices(outcome: Outcome) -> dict[str, int]:
    """How many kept sites have which precision."""
    return dict(sorted(Counter(site.precision.value for site in outcome.plan.kept).items()))


def measure(name: str, opening: Opening, data: Data, work: Path) -> dict[str, Any]:
    """The ladder with `auto`, and what `fp8` chooses."""
    out = work / "out"
    auto = quantize(opening, out, data=data, bench=False, force=True)
    fp8 = quantize(opening, out, Recipe(high_precision="fp8"), data=data, ladder=False, bench=False, force=True)
    rows = {rung.id: rung for rung in auto.report.ladder}
    base = rows[FP32].perplexity
    return {
        "model": name,
        "tokens": auto.report.text.tokens if auto.report.text else 0,
        "fp32": base,
        "kept": {s.key: s.evidence.ratio for s in auto.plan.kept},
        "auto": choices(auto),
        "fp8": choices(fp8),
        "formats": auto.plan.search.formats,
        "rows": {
            row.name: {"perplexity": rows[row].perplexity / base, "kl": rows[row].kl, "bytes": rows[row].bytes}
            for row in ROWS
            if row in rows
        },
    }


def show(found: list[dict[str, Any]], console: Console) -> None:
    for result in found:
        table = Table("row", "x FP32", "KL", "MB", title=f"{result['model']}: {result['tokens']} tokens", box=None)
        for row, values in result["rows"].items():
            table.add_row(row, f"{values['perplexity']:.4f}", f"{values['kl']:.2e}", f"{values['bytes'] / 1e6:.2f}")
        console.print(table)
        console.print(f"  auto: {result['auto']}  fp8: {result['fp8']}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/")
    given = parser.parse_args()
    console = Console()
    if not DATA.is_dir():
        console.print(f"skipped: the data lies in {DATA.relative_to(DATA.parents[1])}, which is not here")
        return
    with tempfile.TemporaryDirectory() as work:
        found = [measure(*case, Path(work)) for case in (reference(), *planted(Path(work)))]
    show(found, console)
    if given.save:
        versions = {name: version(name) for name in ("onnxruntime", "onnx", "numpy", "torch", "transformers")}
        keep("formats", versions=versions, device=processor(), library=library_info(), results=found)


if __name__ == "__main__":
    main()
