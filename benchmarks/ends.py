"""Head and embedding in 8 bits by block: what a file weighs, what they lose on text, and how fast it decodes.

    python benchmarks/ends.py MODEL --calibration valid.txt --text test_raw.txt --save

MODEL is a Hugging Face folder, or one that `spq-graph export` wrote. Every file is timed in turns with the float32 one,
in one thread. Sites are chosen by ratio here (the 24 highest are kept), so that nothing depends on a search.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from keeping import keep

from spq_graph.cli import terminal
from spq_graph.documents.plan import Plan
from spq_graph.documents.recipe import Recipe
from spq_graph.passes.files.read import size_of
from spq_graph.runtime.measures import timing
from spq_graph.runtime.measures.evaluate import score_text
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.proof.health import processor
from spq_graph.runtime.sessions.session import Runner
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.workbench.environment import environment
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import make_plan
from spq_graph.workbench.workbench import Workbench

LENGTH, PAST, KEPT = 128, 128, 24
HEADS = {"w8a8_block": Precision.W8A8_BLOCK, "w8a8_block32": Precision.W8A8_BLOCK32}


def plans(bench: Workbench, calibration: Path, tokens: int) -> dict[str, Plan]:
    """What is built: the two ends alone, and beside quantized sites."""
    ranges = bench.calibrate(bench.sequences(calibration, max_tokens=tokens))
    counted = [s for s in bench.found.sites if not s.left_alone()]
    ratios = sorted((ranges.values[s.input].ratio for s in counted), reverse=True)
    recipe = Recipe(spike_ratio=max(1.01, ratios[min(KEPT, len(ratios) - 1)]), high_precision="w8a8_block")
    made, stored = make_plan(bench, recipe, 8, ranges, None), bench.stored

    def with_ends(plan: Plan, **ends: Precision) -> Plan:
        wanted = {Role.LM_HEAD: ends.get("head"), Role.EMBEDDING: ends.get("table")}
        return plan.with_precisions(lambda s: wanted.get(s.role) or s.precision)

    plain = made.with_precisions(lambda s: stored[s.key])
    by_block = made.with_precisions(lambda s: Precision.W8A8_BLOCK if not s.role.left_alone else s.precision)
    found = {"embedding alone": with_ends(plain, table=Precision.W8A16)}
    found |= {f"head alone, {name}": with_ends(plain, head=head) for name, head in HEADS.items()}
    for base, plan in (("", plain), ("spike-aware", made), ("weight-only", by_block)):
        found |= {base: plan} if base else {}
        for name, head in HEADS.items():
            both = f"both ends, {name}"
            found[f"{base}, {both}" if base else both] = with_ends(plan, head=head, table=Precision.W8A16)
    return found


def scored(bench: Workbench, files: dict[str, Path], text: Path, tokens: int) -> dict[str, Score]:
    """What the ends alone lose on one text: whatever else is quantized hides that."""
    alone = [name for name in files if not name.startswith(("spike-aware", "weight-only"))]
    streams = [Runner(files[name], logits=bench.logits) for name in alone]
    _, scores = score_text(bench.reference, streams, bench.sequences(text, max_tokens=tokens))
    return dict(zip(alone, scores, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibration-tokens", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    given = parser.parse_args()
    with Opening(given.model, window=given.window).open(terminal.steps()) as bench:
        made = plans(bench, given.calibration, given.calibration_tokens)
        files = {name: bench.build(plan).path for name, plan in made.items()}
        scores = scored(bench, files, given.text, given.tokens)
        everything = {"fp32": bench.model, **files}
        runners = {name: Runner(path, threads=1, logits=bench.logits) for name, path in everything.items()}
        seconds = timing.in_turns(runners, (LENGTH,), PAST, given.rounds, lambda done, total: None)
        rows = [_row(name, path, scores.get(name), seconds) for name, path in everything.items()]
    for row in rows:
        kl = f"KL {row['kl']:.5f} ± {row['kl_stderr']:.5f}" if row["kl"] is not None else ""
        speed = f"prefill {row['prefill']:.2f}x decode {row['decode']:.2f}x"
        print(f"{row['name']:<36}{row['bytes'] / 1e6:8.1f} MB  {speed}  {kl}")
    if given.save:
        command = "python benchmarks/ends.py MODEL --calibration valid.txt --text test_raw.txt --save"
        figures = {"tokens": given.tokens, "rounds": given.rounds, "threads": 1, "model": Path(given.model).name}
        print(keep("ends", command=command, **figures, processor=processor(), environment=environment(), rows=rows))


def _row(name: str, path: Path, score: Score | None, seconds: timing.Seconds) -> dict[str, Any]:
    def over(label: str) -> float:
        pairs = zip(seconds["fp32"][label], seconds[name][label], strict=True)
        return statistics.median(a / b for a, b in pairs)

    return {
        "name": name,
        "bytes": size_of(path),
        "kl": score.kl if score is not None else None,
        "kl_stderr": score.kl_stderr if score is not None else None,
        "perplexity": score.perplexity if score is not None else None,
        "prefill": over(f"prefill {LENGTH}"),
        "decode": over(timing.DECODE),
        "decode_milliseconds": 1e3 * statistics.median(seconds[name][timing.DECODE]),
    }


if __name__ == "__main__":
    main()
