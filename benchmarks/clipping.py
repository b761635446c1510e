"""What ranges smaller than the observed ones bring, with static scales: clip ratios, which no remedy has.

    python -m benchmarks.clipping MODEL PLAN --text test_raw.txt [--save]

MODEL is what `spq-graph quantize` takes, PLAN the plan.json that it made of it (`--preset w8a8-static`). Every range is
narrowed to the same share of what calibration saw, or widened: with nothing but integers, with the remedies of the plan
and nothing kept, and as the plan has it; then, with nothing kept, at one place after the other: siblings that read the
same activation are one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.keeping import keep
from spq_graph.cli import terminal
from spq_graph.decisions.other_treatments import throughout
from spq_graph.decisions.variants import Variant, variants
from spq_graph.documents.changes import Peel
from spq_graph.documents.plan import Plan, SitePlan
from spq_graph.documents.treatment import Treatment
from spq_graph.runtime.proof.health import processor
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import EVERYWHERE, SPIKE_AWARE
from spq_graph.workbench.environment import environment
from spq_graph.workbench.ladder import measure_ladder
from spq_graph.workbench.opening import Opening

RATIOS = (1.4, 0.8, 0.65, 0.5)
TITLES = {"everywhere": "everywhere in integers", "remedies": "nothing kept, remedies of the plan", "plan": "the plan"}


def narrowed(plan: Plan, ratio: float, role: str | None = None) -> Plan:
    """A plan whose static ranges are this share of what they were, of all sites or of those of a role."""
    values = {s.input for s in plan.sites if s.precision.needs_range and role in (None, s.role)}

    def site(one: SitePlan) -> SitePlan:
        if one.range is None or one.input not in values:
            return one
        low, high = one.range
        return one.model_copy(update={"range": (ratio * low, ratio * high)})

    def treatment(one: Treatment) -> Treatment:
        changes = tuple(
            change.model_copy(update={"low": ratio * change.low, "high": ratio * change.high})
            if isinstance(change, Peel) and change.value in values
            else change
            for change in one.changes
        )
        return one.model_copy(update={"changes": changes})

    sites, treatments = [site(one) for one in plan.sites], [treatment(one) for one in plan.treatments]
    return plan.model_copy(update={"sites": sites, "treatments": treatments})


def rows(
    plan: Plan, stored: Mapping[str, Precision], ratios: Sequence[float]
) -> Iterator[tuple[str, str, float, Variant]]:
    """What is measured: which plan, which role's ranges (or "all"), and what share of them is left."""
    everywhere = next(variant.plan for variant in variants(plan, stored) if variant.id == EVERYWHERE)
    treated = throughout(everywhere.with_treatments(plan.treatments))
    for name, made in (("everywhere", everywhere), ("remedies", treated), ("plan", plan)):
        for ratio in (1.0, *ratios):
            yield name, "all", ratio, Variant(SPIKE_AWARE, plan.recipe.bits, narrowed(made, ratio))
    first = {site.input: site.role for site in reversed(treated.sites) if site.precision.needs_range}
    for role in sorted(set(first.values())):
        for ratio in ratios:
            yield "remedies", role, ratio, Variant(SPIKE_AWARE, plan.recipe.bits, narrowed(treated, ratio, role))


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A table in Markdown: KL by what is narrowed, and to what share."""
    kl = {(row["plan"], row["role"], row["ratio"]): row for row in found}
    ratios = list(dict.fromkeys(row["ratio"] for row in found))
    lines = [f"| narrowed to | {' | '.join(f'{ratio:g}' for ratio in ratios)} |", f"|---|{'---|' * len(ratios)}"]
    for plan, role in dict.fromkeys((row["plan"], row["role"]) for row in found):
        whole = kl[plan, "all", 1.0]
        cells = [kl.get((plan, role, ratio), whole) for ratio in ratios]
        name = TITLES[plan] if role == "all" else f"{TITLES[plan]}, `{role}` alone"
        figures = [f"{cell['kl']:.4f} ± {cell['kl_stderr']:.4f}" for cell in cells]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines)


def measured(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Every row."""
    plan = Plan.load(given.plan)
    with Opening(given.model, window=given.window).open(terminal.steps()) as bench:
        if plan.model.digest != bench.digest:
            raise SystemExit(f"{given.plan} is the plan of another model than {given.model}")
        wanted = list(rows(plan, bench.stored, given.ratios))
        text = bench.sequences(given.text, max_tokens=given.tokens)
        _, *rungs = measure_ladder(bench, [variant for *_, variant in wanted], text, {})
    return [
        {"plan": name, "role": role, "ratio": ratio, "kl": rung.kl, "kl_stderr": rung.kl_stderr}
        for (name, role, ratio, _), rung in zip(wanted, rungs, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what is measured")
    parser.add_argument("plan", type=Path, help="its plan.json")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, help="to how many times the observed range")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/results")
    given = parser.parse_args()
    found = measured(given)
    print(table(found))
    if given.save:
        command = f"python -m benchmarks.clipping {Path(given.model).name} plan.json --text {given.text.name}"
        facts = {"window": given.window, "tokens": given.tokens, "processor": processor(), "environment": environment()}
        print(keep("clipping", command=command, **facts, rows=found))


if __name__ == "__main__":
    main()
