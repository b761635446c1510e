"""Ladder: what quantizing everywhere costs, what keeping the spikes wins back, and the controls beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spq_graph.decide import high_precision
from spq_graph.passes.graph import files_of
from spq_graph.plan import Plan, SitePlan
from spq_graph.progress import Steps
from spq_graph.recipe import Precision
from spq_graph.report import Rung
from spq_graph.runtime.evaluate import Score, evaluate
from spq_graph.runtime.sequences import Sequences
from spq_graph.runtime.session import Runner, execute_once
from spq_graph.workbench import Built, Workbench, discard

RANDOM_SEEDS = (0, 1, 2)
# Models whose sessions live side by side: each batch of FP logits is then computed once for all of them.
SESSION_BYTES = 2 << 30


@dataclass(slots=True)
class Variant:
    """One row to be measured."""

    name: str
    bits: int
    plan: Plan
    seed: int | None = None
    built: Built | None = None


def variants(plan: Plan, stored: Mapping[str, str]) -> list[Variant]:
    """The rows that belong to one plan; `stored` is the format of each weight in the graph, by site key."""
    bits = plan.recipe.bits
    integer = Precision.integer(bits)
    counted = {s.key for s in plan.counted}

    def quantized_but(kept: frozenset[str], **recipe: object) -> Plan:
        high = {s.key: s.precision for s in plan.kept}
        return plan.with_precisions(
            lambda s: s.precision if s.key not in counted or s.range is None
            else high.get(s.key, high_precision(plan.recipe, stored[s.key])) if s.key in kept else integer,
            **recipe,
        )  # fmt: skip

    none: frozenset[str] = frozenset()
    rows = [
        Variant("everywhere", bits, quantized_but(none)),
        Variant("everywhere_symmetric", bits, quantized_but(none, activations="symmetric")),
        Variant("everywhere_per_tensor_weights", bits, quantized_but(none, weights="per_tensor")),
        Variant("spike_aware", bits, plan),
    ]
    others = sorted((s for s in plan.counted if s not in plan.kept), key=_ratio)
    count = min(len(plan.kept), len(others))
    if count:
        lowest = frozenset(s.key for s in others[:count])
        rows.append(Variant("control_lowest", bits, quantized_but(lowest)))
        for seed in RANDOM_SEEDS:
            picked = np.random.default_rng(plan.recipe.seed + seed).choice(len(others), size=count, replace=False)
            keys = frozenset(others[i].key for i in picked)
            rows.append(Variant("control_random", bits, quantized_but(keys), seed=plan.recipe.seed + seed))
    return rows


def weight_only(plan: Plan) -> Variant:
    """The honest rival: every weight in 8 bits by block, activations as they are."""
    counted = {s.key for s in plan.counted}
    rival = plan.with_precisions(lambda s: Precision.W8A16 if s.key in counted else s.precision)
    return Variant("weight_only", 8, rival)


def _ratio(site: SitePlan) -> tuple[float, str]:
    return (site.evidence.ratio if site.evidence.ratio is not None else math.inf, site.key)


def measure_ladder(bench: Workbench, rows: Sequence[Variant], text: Sequences, steps: Steps) -> list[Rung]:
    """Build, prove and measure every row on the same tokens; FP32 comes first.

    Raises:
        CheckError: a row's integer sites did not run as integer kernels.
    """
    source = sum(file.stat().st_size for file in files_of(bench.model))
    side_by_side = max(1, SESSION_BYTES // source)
    groups = [rows[start : start + side_by_side] for start in range(0, len(rows), side_by_side)]
    ladder: list[Rung] = []
    with steps.step("ladder", f"Measuring {len(rows) + 1} models on {text.tokens} tokens") as tick:
        for number, group in enumerate(groups):

            def in_all(done: int, total: int, number: int = number) -> None:
                tick(number * total + done, len(groups) * total)

            files = [row.built or bench.build(row.plan) for row in group]
            reference, scores = evaluate(bench.runner, [Runner(file.path) for file in files], text, in_all)
            if not ladder:
                executed = execute_once(bench.model, text.ids[:1, :8]).ops
                ladder.append(_rung("fp32", None, reference, source, [], executed))
            for row, file, score in zip(group, files, scores, strict=True):
                executed = bench.prove(file, row.plan).ops
                ladder.append(_rung(row.name, row.bits, score, file.bytes, _kept(row), executed, row.seed))
                if row.built is None:
                    discard(file)
    return ladder


def _kept(row: Variant) -> list[str]:
    # Of weight-only nothing is kept: it is another way to quantize everything.
    return [] if row.name == "weight_only" else [s.key for s in row.plan.counted if s.precision.bits is None]


def _rung(
    name: str, bits: int | None, score: Score, size: int, kept: list[str], executed: dict[str, int],
    seed: int | None = None,
) -> Rung:  # fmt: skip
    return Rung(
        name=name, bits=bits, perplexity=score.perplexity, nll=score.nll, kl=score.kl, top1=score.top1, bytes=size,
        kept=kept, executed=executed, seed=seed,
    )  # fmt: skip
