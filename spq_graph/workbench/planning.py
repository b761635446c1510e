"""From ranges to a plan: decisions on paper, and the measuring that they ask for."""

from __future__ import annotations

from collections.abc import Sequence

from spq_graph.decisions.decide import decide
from spq_graph.decisions.enough import too_few
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe, load_recipe
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.workbench.meter import meter
from spq_graph.workbench.workbench import Workbench


def widths_of(recipe: Recipe, ladder_bits: Sequence[int]) -> tuple[int, ...]:
    """Bit widths to decide at, each once: the recipe's, which OUT holds, and those that get rows in the ladder only.

    Raises:
        UsageError: one of them is not legal.
    """
    widths = tuple(dict.fromkeys((recipe.bits, *ladder_bits)))
    for bits in widths[1:]:
        load_recipe(None, bits=bits)
    return widths


def make_plan(bench: Workbench, recipe: Recipe, bits: int, ranges: Ranges, sequences: Sequences | None) -> Plan:
    """Decide at so many bits; without sequences by the ratio rule."""
    recipe = recipe.model_copy(update={"bits": bits})
    with bench.steps.step(f"decide at {bits} bits", f"Deciding at {bits} bits") as tick:
        measure, tokens = None, 0
        if sequences is not None and recipe.spike_ratio is None:
            counter = iter(range(1, 1_000_000))
            candidates = sum(
                v.ratio > recipe.candidate_ratio for s in bench.found.sites if (v := ranges.values.get(s.input))
            )
            expected = candidates + 6
            measure, tokens = meter(
                bench, sequences, recipe, ranges, lambda: tick(min(n := next(counter), expected), max(n, expected))
            )
        made = decide(
            bench.found.sites,
            ranges,
            recipe,
            bench.ref,
            stored=bench.stored,
            unmatched=bench.found.unmatched,
            origin=sequences.origin if sequences is not None else "",
            measure=measure,
            tokens=tokens,
            token_text=bench.tokenizer.token_text if bench.tokenizer is not None else None,
        )
    remark = too_few(ranges.tokens, bench.known_length)
    return made.model_copy(update={"calibration": made.calibration.model_copy(update={"remark": remark})})
