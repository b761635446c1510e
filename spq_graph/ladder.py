"""What quantizing everywhere costs, what keeping the spikes wins back, and the controls beside it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spq_graph.errors import GraphError
from spq_graph.passes.graph import files_of
from spq_graph.plan import Plan, Reason, SitePlan
from spq_graph.progress import Steps
from spq_graph.recipe import Precision
from spq_graph.report import Rung
from spq_graph.runtime.evaluate import Score, evaluate
from spq_graph.runtime.sequences import Sequences
from spq_graph.streams import execute
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


def variants(plan: Plan, stored: Mapping[str, Precision]) -> list[Variant]:
    """The rows that belong to one plan; `stored` is the format of each weight in the graph, by site key."""
    bits = plan.recipe.bits
    integer = Precision.integer(bits)
    counted = {s.key for s in plan.counted}

    # The controls keep other sites in the format that most of the plan's kept ones have.
    common = Counter(s.precision for s in plan.kept).most_common(1)

    def quantized_but(kept: frozenset[str], **recipe: object) -> Plan:
        return plan.with_precisions(
            lambda s: (
                s.precision
                if s.key not in counted or s.range is None
                else (common[0][0] if common else stored[s.key])
                if s.key in kept
                else integer
            ),
            **recipe,
        )

    none: frozenset[str] = frozenset()
    rows = [
        Variant("everywhere", bits, quantized_but(none)),
        Variant("everywhere_symmetric", bits, quantized_but(none, activations="symmetric")),
        Variant("everywhere_per_tensor_weights", bits, quantized_but(none, weights="per_tensor")),
        Variant("spike_aware", bits, plan),
        *_other_formats(plan),
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


def _other_formats(plan: Plan) -> list[Variant]:
    """The plan with its kept sites in every format that the target has."""
    keys = {s.key for s in plan.kept if s.range is not None and s.reason is not Reason.TOO_FEW_TOKENS}
    if not keys:
        return []

    def kept_in(high: Precision) -> Variant:
        profile = plan.recipe.profile
        tried = plan.with_precisions(lambda s: profile.settle(high, s.largest)[0] if s.key in keys else s.precision)
        return Variant(f"spike_aware_{high}", plan.recipe.bits, tried)

    return [kept_in(high) for high in plan.recipe.profile.compared]


def weight_only(plan: Plan) -> Variant:
    """The honest rival: every weight in 8 bits by block, and no scale of activations that was settled beforehand."""
    counted = {s.key for s in plan.counted}
    target, by_block = plan.recipe.profile.weight_only
    rival = plan.with_precisions(lambda s: by_block if s.key in counted else s.precision, target=target)
    return Variant("weight_only", 8, rival)


def _ratio(site: SitePlan) -> tuple[float, str]:
    return (site.evidence.ratio if site.evidence.ratio is not None else math.inf, site.key)


def measure_ladder(bench: Workbench, rows: Sequence[Variant], text: Sequences, steps: Steps) -> list[Rung]:
    """Build, prove and measure every row on the same tokens; FP32 comes first.

    Rows that decide the same are measured once. A row in a format that the graph cannot have is left out, and said so.

    Raises:
        CheckError: a row's integer sites did not run as integer kernels.
    """
    alike: dict[object, list[Variant]] = {}
    for row in rows:
        alike.setdefault(_decisions(row.plan), []).append(row)
    distinct = [next((row for row in same if row.built is not None), same[0]) for same in alike.values()]
    source = sum(file.stat().st_size for file in files_of(bench.model))
    side_by_side = max(1, SESSION_BYTES // source)
    groups = [distinct[start : start + side_by_side] for start in range(0, len(distinct), side_by_side)]
    measured: dict[object, Rung] = {}
    ladder: list[Rung] = []
    with steps.step("ladder", f"Measuring {len(distinct) + 1} models on {text.tokens} tokens") as tick:
        for number, group in enumerate(groups):

            def in_all(done: int, total: int, number: int = number) -> None:
                tick(number * total + done, len(groups) * total)

            built = [(row, file) for row in group if (file := _built(bench, row, steps)) is not None]
            streams = [bench.stream_for(row.plan, file) for row, file in built]
            reference, scores = evaluate(bench.reference, streams, text, in_all)
            if not ladder:
                executed = execute(bench.reference, text.ids[:1, :8]).ops
                ladder.append(_rung("fp32", None, reference, source, executed))
            for (row, file), score, stream in zip(built, scores, streams, strict=True):
                executed = {} if bench.emulates(row.plan) else bench.prove(file, row.plan, stream).ops
                measured[_decisions(row.plan)] = _rung(row.name, row.bits, score, file.bytes, executed)
                if row.built is None:
                    discard(file)
    for row in rows:
        rung = measured.get(_decisions(row.plan))
        if rung is not None:
            named = {"name": row.name, "bits": row.bits, "seed": row.seed, "kept": _kept(row)}
            ladder.append(rung.model_copy(update=named))
    return ladder


def _decisions(plan: Plan) -> object:
    """What makes two plans the same model."""
    recipe = plan.recipe
    sites = tuple((site.key, site.precision) for site in plan.sites)
    return recipe.bits, recipe.activations, recipe.weights, sites


def _built(bench: Workbench, row: Variant, steps: Steps) -> Built | None:
    if row.built is not None:
        return row.built
    try:
        return bench.build(row.plan, emulate=bench.emulates(row.plan))
    except GraphError as cause:
        if not row.name.startswith("spike_aware_"):
            raise
        steps.console.print(f"no row {row.name}: {cause.what}", markup=False, highlight=False)
        return None


def _kept(row: Variant) -> list[str]:
    # Of weight-only nothing is kept: it is another way to quantize everything.
    return [] if row.name == "weight_only" else [s.key for s in row.plan.counted if s.precision.bits is None]


def _rung(name: str, bits: int | None, score: Score, size: int, executed: dict[str, int]) -> Rung:
    return Rung(
        name=name,
        bits=bits,
        perplexity=score.perplexity,
        nll=score.nll,
        kl=score.kl,
        top1=score.top1,
        bytes=size,
        kept=[],
        executed=executed,
    )
