"""What the evaluations of a decision take, from two of few tokens; and how much is lost in integers, as they tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from spq_graph.decisions.by_kl import FAR, FEWEST_MEASURED
from spq_graph.decisions.choices import most_kept
from spq_graph.decisions.decide import decide
from spq_graph.decisions.effort import all_by_token
from spq_graph.documents.changes import Peel
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.runtime.text.sequences import Sequences, beginnings
from spq_graph.terms.precision import Precision
from spq_graph.workbench.meter import meter
from spq_graph.workbench.rates import SHORT, Rate, timed
from spq_graph.workbench.workbench import Workbench

# Tokens of an evaluation, fewer than a pass is tried on: most of what it takes is to open sessions.
EVALUATED = 128
# What was seen of models from 1 to 135 million weights: seconds of a product in integers in those of float32.
INTEGER = 0.7


@dataclass(frozen=True, slots=True)
class Losses:
    """KL at one bit width, nats a token; infinite where nobody could tell.

    Attributes:
        everywhere: with all sites in integers.
        kept: with all of them but the candidates; where these are many, at least what a decision goes by of those that
            may be kept.
        by_token: with scales by token and the most channels in branches; None where that was not tried.
    """

    everywhere: float
    kept: float
    by_token: float | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """What evaluations take, and what they say of a few tokens.

    Attributes:
        everywhere: with all sites in integers, whose weights are encoded.
        alone: with one candidate of them, in the middle of what is there.
        encode: seconds to encode all weights.
        losses: by bit width.
    """

    everywhere: Rate
    alone: Rate
    encode: float
    losses: Mapping[int, Losses]


NOTHING = Tried(Rate(0.0, 0.0), Rate(0.0, 0.0), 0.0, {})


def evaluated(
    bench: Workbench,
    recipe: Recipe,
    ranges: Ranges,
    candidates: Sequence[str],
    some: Sequences,
    rate: Rate,
    compared: float,
    widths: Sequence[int],
) -> Tried:
    """Evaluate with all sites in integers and with a single one; and what the former costs at every width.

    A candidate in the middle of all stands for each: it is run from where the graph first differs, so that on average
    half of it is not.

    Args:
        bench: the model.
        recipe: what is wanted.
        ranges: of a few tokens.
        candidates: keys of sites whose ratio there makes them candidates.
        some: the tokens, of which no more are taken than it needs.
        rate: of a pass.
        compared: seconds to hold what a model says of a token against what the source says.
        widths: in bits.
    """
    sites = [s for s in bench.found.sites if s.input in ranges.values and not s.left_alone(recipe.quantize_lm_head)]
    counted = [s.key for s in sites]
    all_of_them = dict.fromkeys(counted, Precision.integer(recipe.bits))
    keys = candidates or list(all_of_them)
    ratios = {s.key: ranges.values[s.input].ratio for s in sites}
    highest = sorted(candidates, key=lambda key: -ratios[key])[: most_kept(recipe, len(sites))]
    single = {keys[len(keys) // 2]: Precision.integer(recipe.bits)}
    on = some
    if bench.reference.fixed_shape[1] is None:
        on = beginnings(some, None, max(2, EVALUATED // len(some)))
    asked = recipe.model_copy(update={"sensitivity_tokens": on.tokens})
    measure = meter(bench, on, asked, ranges, lambda _: None).whole

    def taken(precisions: Mapping[str, Precision], token: float) -> tuple[float, Rate, float]:
        kl, first = timed(partial(measure.kl, precisions))
        seconds = first
        if first < SHORT or len(precisions) > 1:  # what is done once would be much of it: encoding all weights is
            seconds = min(first, timed(partial(measure.kl, precisions))[1])
        return kl, Rate(max(0.0, seconds - (token + compared) * on.tokens), token + compared), first - seconds

    known, everywhere, encode = taken(all_of_them, INTEGER * rate.token)

    def keeping(names: Collection[str], bits: int) -> float:
        return measure.kl(dict.fromkeys((key for key in counted if key not in names), Precision.integer(bits)))

    def losses(bits: int) -> Losses:
        kl = known if bits == recipe.bits else measure.kl(dict.fromkeys(counted, Precision.integer(bits)))
        kept = keeping(candidates, bits) if candidates and kl > recipe.kl_aim else kl
        if kept <= recipe.kl_budget and len(candidates) > FEWEST_MEASURED:
            kept = max(kept, keeping(highest, bits) / FAR)
        asked = recipe.model_copy(update={"bits": bits})
        by_token = kept > recipe.kl_budget and asked.may_scale_by_token
        return Losses(kl, kept, measure.kl(*_by_token(bench, asked, ranges)) if by_token else None)

    alone = taken(single, rate.token / 2)[1]
    return Tried(everywhere, alone, encode, {bits: losses(bits) for bits in widths})


def _by_token(bench: Workbench, recipe: Recipe, ranges: Ranges) -> tuple[dict[str, Precision], dict[str, Peel]]:
    """Everything with scales by token, and a branch of the most channels wherever one is worth it."""
    recipe = all_by_token(recipe)
    plan = decide(bench.found.every, ranges, recipe, bench.ref, stored=bench.stored, held=bench.found.held)
    return {site.key: site.precision for site in plan.counted}, plan.peels
