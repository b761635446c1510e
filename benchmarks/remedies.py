"""Each remedy alone, all of them but one, and controls: KL, perplexity, kept sites and bytes, with static scales.

    python -m benchmarks.remedies MODEL --calibration valid.txt --text test_raw.txt [--save] [--write]

MODEL is what `spq-graph quantize` takes. It is opened and calibrated once; every way is decided by itself, and all
files are then measured beside FP32 on the same text. Head and embedding are in 8 bits throughout, so that bytes tell
what the remedies add. --write puts the table into docs/remedies.md; with what an earlier run kept, a .json, in place of
MODEL and its data it does that alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.keeping import keep
from benchmarks.published.markers import write
from spq_graph.cli import terminal
from spq_graph.decisions.other_treatments import Footings
from spq_graph.decisions.variants import FP32_WITH_PREFIX, Variant, source_behind, variants, weight_only
from spq_graph.documents.changes import Peel, Prefix, Scale
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.remedies import Remedies
from spq_graph.documents.report import Rung
from spq_graph.runtime.proof.health import processor
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.terms.rows import EVERYWHERE, FP32, SPIKE_AWARE, Extent, RowId, RowKind
from spq_graph.workbench.environment import environment
from spq_graph.workbench.ladder import measure_ladder
from spq_graph.workbench.opening import Opening
from spq_graph.workbench.planning import make_plan
from spq_graph.workbench.prefixing import all_footings
from spq_graph.workbench.workbench import Workbench

PAGE = Path(__file__).resolve().parents[1] / "docs" / "remedies.md"
MARKER = "remedies measured"
SEED = 0
FIXED = {"scales": "static", "head": "8bit", "embedding": "8bit", "seed": SEED}
CHANNELS, FACTORS = RowId(RowKind.CONTROL_CHANNELS, seed=SEED), RowId(RowKind.CONTROL_FACTORS, seed=SEED)
PREFIX, KEPT = RowId(RowKind.CONTROL_PREFIX, seed=SEED), RowId(RowKind.CONTROL_RANDOM, seed=SEED)


@dataclass(frozen=True, slots=True)
class Way:
    """One decision, and the rows of its ladder that are shown, by what they are called.

    Attributes:
        wanted: fields of the recipe.
        rows: of its plan; those that a plan does not have are left out.
    """

    wanted: Mapping[str, Any]
    rows: Mapping[RowId, str]


def only(*names: str) -> dict[str, Any]:
    """These remedies and no other."""
    return {name: {"use": "always"} if name in names else NEVER for name in Remedies.model_fields}


NEVER = {"use": "never"}
NOTHING_KEPT = {"max_kept": 0.0}
WAYS = (
    Way(
        {"remedies": only()},
        {EVERYWHERE: "quantized everywhere", SPIKE_AWARE: "**sites kept**, no remedy", KEPT: "as many sites, drawn"},
    ),
    Way(
        {"remedies": only("peel"), **NOTHING_KEPT},
        {SPIKE_AWARE: "**branches** alone", CHANNELS: "as many channels, drawn"},
    ),
    Way(
        {"remedies": only("smooth"), **NOTHING_KEPT},
        {SPIKE_AWARE: "**smoothing** alone", FACTORS: "the same factors, permuted"},
    ),
    Way(
        {},
        {
            SPIKE_AWARE: "**`auto`**, the default",
            CHANNELS: "the same, as many channels, drawn",
            FACTORS: "the same, factors permuted",
        },
    ),
    Way({"remedies": {"smooth": NEVER}}, {SPIKE_AWARE: "`auto` without smoothing"}),
    Way({"remedies": {"peel": NEVER}}, {SPIKE_AWARE: "`auto` without branches"}),
    Way(NOTHING_KEPT, {SPIKE_AWARE: "`auto` with nothing kept"}),
    Way(
        {"remedies": only("prefix"), **NOTHING_KEPT},
        {SPIKE_AWARE: "**prefix** alone", PREFIX: "as many tokens, drawn", FP32_WITH_PREFIX: "FP32 behind the prefix"},
    ),
    Way({"remedies": {"prefix": {"use": "always"}}}, {SPIKE_AWARE: "`auto` behind the prefix"}),
)


def prefixed(way: Way) -> bool:
    """Whether a way has a prefix, behind which all is calibrated anew."""
    return Recipe.model_validate({**FIXED, **way.wanted}).remedies.prefix.use == "always"


@dataclass(slots=True)
class Decided:
    """A model that is decided over in several ways.

    Attributes:
        bench: the source.
        text: calibration data.
        folder: holds ranges and plans, these by number: what lies there is taken. None for none.
        prefix: token ids of the prefix; none for a search.
    """

    bench: Workbench
    text: Sequences
    folder: Path | None
    prefix: tuple[int, ...] = ()
    ranges: Ranges = field(init=False)
    _footings: dict[object, Footings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        file = self.folder / "ranges.json" if self.folder is not None else None
        there = file is not None and file.is_file()
        self.ranges = Ranges.load(file) if file is not None and there else self.bench.calibrate(self.text)
        if file is not None and not there:
            self.ranges.save(file)

    def footings(self, recipe: Recipe) -> Footings:
        """What plans stand on that want the same of a prefix; that is searched once."""
        wanted = recipe.remedies.prefix
        if wanted not in self._footings:
            self._footings[wanted] = all_footings(self.bench, recipe, self.ranges, self.text, Extent.FULL)
        return self._footings[wanted]

    def plan(self, number: int, recipe: Recipe) -> Plan:
        """The plan of a way."""
        file = self.folder / f"{number}.json" if self.folder is not None else None
        if file is not None and file.is_file():
            return Plan.load(file)
        made = make_plan(self.bench, recipe, recipe.bits, self.ranges, self.text, self.footings(recipe).own)
        if file is not None:
            made.save(file)
        return made

    def rows(self, number: int, way: Way, **wanted: Any) -> Iterator[tuple[str, Variant]]:
        """The rows of a way, by name."""
        recipe = Recipe.model_validate({**FIXED, **wanted, **way.wanted})
        if recipe.remedies.prefix.use == "always":
            prefix = recipe.remedies.prefix.model_copy(update={"tokens": self.prefix})
            recipe = recipe.model_copy(update={"remedies": recipe.remedies.model_copy(update={"prefix": prefix})})
        plan = self.plan(number, recipe)
        footings, stored = self.footings(recipe), self.bench.stored
        found = {v.id: v for v in [*variants(plan, stored, Extent.FULL, footings), *source_behind(plan, stored)]}
        yield from ((name, found[row]) for row, name in way.rows.items() if row in found)
        if number == 0:
            yield "8-bit weights alone", weight_only(plan)


def figures(name: str, plan: Plan, rung: Rung) -> dict[str, Any]:
    """One line of the table, as it is kept."""
    changes = [change for one in plan.treatments if one.applied for change in one.changes]
    return {
        "way": name,
        "kl": rung.kl,
        "kl_stderr": rung.kl_stderr,
        "perplexity": rung.perplexity,
        "bytes": rung.bytes,
        "kept": len(rung.kept),
        "branches": sum(isinstance(change, Peel) for change in changes),
        "channels": sum(len(change.channels) for change in changes if isinstance(change, Peel)),
        "smoothed": sum(isinstance(change, Scale) for change in changes),
        "prefix": next((list(change.tokens) for change in changes if isinstance(change, Prefix)), None),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of a page, in Markdown; the first row is FP32."""
    base = rows[0]["perplexity"]
    lines = [
        "| | KL | perplexity | sites kept | branches (channels) | smoothed | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows[1:]:
        error = f" ± {row['kl_stderr']:.4f}" if row["kl_stderr"] is not None else ""  # unknown of one window
        cells = (
            row["way"],
            f"{row['kl']:.4f}{error}",
            f"{row['perplexity'] / base - 1:+.2%}".replace("%", " %"),
            row["kept"] or "–",
            f"{row['branches']} ({row['channels']:,})" if row["branches"] else "–",
            row["smoothed"] or "–",
            f"{row['bytes'] / 1e6:.0f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def measured(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row, FP32 first."""
    with Opening(given.model, window=given.window).open(terminal.steps()) as bench:
        text = bench.sequences(given.calibration, max_tokens=given.calibration_tokens)
        decided = Decided(bench, text, given.plans, tuple(given.prefix or ()))
        wanted = {"bits": given.bits, "sensitivity_tokens": given.sensitivity_tokens}
        ways = [way for way in WAYS if not (given.no_prefix and prefixed(way))]
        rows = [row for way in ways for row in decided.rows(WAYS.index(way), way, **wanted)]
        held_out = bench.sequences(given.text, max_tokens=given.tokens)
        reference, *rungs = measure_ladder(bench, [variant for _, variant in rows], held_out, {})
    found = [figures(name, variant.plan, rung) for (name, variant), rung in zip(rows, rungs, strict=True)]
    return [{"way": FP32.name, "perplexity": reference.perplexity, "bytes": reference.bytes}, *found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what is measured, or the .json that an earlier run kept")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--calibration-tokens", type=int, default=16384)
    parser.add_argument("--sensitivity-tokens", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--prefix", type=int, nargs="+", help="token ids of the prefix, instead of a search")
    parser.add_argument("--no-prefix", action="store_true", help="leave out the two ways behind a prefix, for its time")
    parser.add_argument("--plans", type=Path, help="folder that keeps ranges and plans: what lies there is taken")
    parser.add_argument("--remark", help="of the machine, kept with the figures")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    parser.add_argument("--write", action="store_true", help="put the table into docs/remedies.md")
    given = parser.parse_args()
    kept = Path(given.model) if given.model.endswith(".json") else None
    if kept is None and None in (given.calibration, given.text):
        parser.error("a model is measured on --text, by ranges of --calibration")
    if given.plans is not None:
        given.plans.mkdir(parents=True, exist_ok=True)
    rows = json.loads(kept.read_text(encoding="utf-8"))["rows"] if kept is not None else measured(given)
    print(table(rows))
    if given.save and kept is None:
        command = f"python -m benchmarks.remedies {Path(given.model).name} --calibration {given.calibration.name} "
        command += f"--text {given.text.name}"
        settings = ("prefix", "no_prefix", "bits", "window", "calibration_tokens", "sensitivity_tokens", "tokens")
        facts: dict[str, Any] = {name: getattr(given, name) for name in settings}
        facts |= {"remark": given.remark, "processor": processor(), "environment": environment(), "recipe": FIXED}
        print(keep("remedies", command=command, **facts, rows=rows))
    if given.write:
        write(PAGE, MARKER, table(rows))


if __name__ == "__main__":
    main()
