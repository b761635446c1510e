"""Ladder: what quantizing everywhere costs, what keeping the spikes wins back, and the controls beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spq_graph.passes.graph import files_of
from spq_graph.plan import Plan, SitePlan
from spq_graph.progress import Steps
from spq_graph.recipe import Precision
from spq_graph.report import Rung
from spq_graph.runtime.evaluate import Score, evaluate
from spq_graph.runtime.sequences import Sequences
from spq_graph.runtime.session import Runner, check_integer_sites, execute_once
from spq_graph.workbench import Built, Workbench, discard, with_precisions

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


def variants(plan: Plan, as_is: Precision) -> list[Variant]:
    """The rows that belong to one plan."""
    bits = plan.recipe.bits
    integer = Precision.integer(bits)
    counted = {s.key for s in plan.counted}

    def quantized_but(kept: frozenset[str], **recipe: object) -> Plan:
        high = {s.key: s.precision for s in plan.kept}
        default = as_is if plan.recipe.high_precision == "auto" else Precision(plan.recipe.high_precision)
        return with_precisions(
            plan,
            lambda s: s.precision if s.key not in counted or s.range is None
            else high.get(s.key, default) if s.key in kept else integer,
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
    rival = with_precisions(plan, lambda s: Precision.W8A16 if s.key in counted else s.precision)
    return Variant("weight_only", 8, rival)


def _ratio(site: SitePlan) -> tuple[float, str]:
    return (site.evidence.ratio if site.evidence.ratio is not None else math.inf, site.key)


def measure_ladder(bench: Workbench, rows: Sequence[Variant], text: Sequences, steps: Steps) -> list[Rung]:
    """Build, prove and measure every row on the same tokens; FP32 comes first.

    Raises:
        CheckError: a row's integer sites did not run as integer kernels.
    """
    own = [row for row in rows if row.built is None]
    with steps.step("build ladder", f"Building {len(own)} variants") as tick:
        for done, row in enumerate(own):
            row.built = bench.build(row.plan)
            tick(done + 1, len(own))
    reference: Score | None = None
    scores: list[Score] = []
    groups = _groups([row.built.bytes for row in rows if row.built is not None])
    with steps.step("evaluate", f"Evaluating {len(rows) + 1} models on {text.tokens} tokens") as tick:
        for number, (start, stop) in enumerate(groups):
            runners = [Runner(row.built.path) for row in rows[start:stop] if row.built is not None]
            reference, part = evaluate(
                bench.runner, runners, text,
                lambda done, total, number=number: tick(number * total + done, len(groups) * total),  # type: ignore[misc]
            )  # fmt: skip
            scores += part
    assert reference is not None
    ladder = [
        _rung(
            "fp32",
            None,
            reference,
            sum(f.stat().st_size for f in files_of(bench.model)),
            [],
            execute_once(bench.model, text.ids[:1, :8]).ops,
        )
    ]
    for row, score in zip(rows, scores, strict=True):
        assert row.built is not None
        executed = execute_once(row.built.path, text.ids[:1, :8])
        check_integer_sites(executed, [(s.key, s.node) for s in row.plan.integer_sites], row.name)
        kept = [s.key for s in row.plan.counted if s.precision.bits is None] if row.name != "weight_only" else []
        ladder.append(_rung(row.name, row.bits, score, row.built.bytes, kept, executed.ops, row.seed))
    for row in own:
        if row.built is not None:
            discard(row.built)
    return ladder


def _groups(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive runs of models whose sessions fit into memory together."""
    groups, start, used = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and used + size > SESSION_BYTES:
            groups.append((start, index))
            start, used = index, 0
        used += size
    return [*groups, (start, len(sizes))]


def _rung(
    name: str, bits: int | None, score: Score, size: int, kept: list[str], executed: dict[str, int],
    seed: int | None = None,
) -> Rung:  # fmt: skip
    return Rung(
        name=name, bits=bits, perplexity=score.perplexity, nll=score.nll, kl=score.kl, top1=score.top1, bytes=size,
        kept=kept, executed=executed, seed=seed,
    )  # fmt: skip
