"""Decide: which sites keep high precision, and why. Pure: no graph, no file; what costs time is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spq_graph.errors import UsageError
from spq_graph.plan import CalibrationRef, Evidence, ModelRef, Plan, Reason, Search, SitePlan, UnmatchedNode
from spq_graph.ranges import Ranges, ValueRange
from spq_graph.recipe import Precision, Recipe, matches
from spq_graph.sites import Site, Unmatched

# KL(FP || model), nats a token, where the first set of sites runs in integers, the second in the high precision, and
# the rest as the graph has it.
Measure = Callable[[frozenset[str], frozenset[str]], float]
_NONE: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Choice:
    """What is known of one site on the way to its plan."""

    site: Site
    seen: ValueRange | None
    precision: Precision
    reason: Reason
    kl: float | None = None
    rank: int | None = None
    threshold: float | None = None
    note: str | None = None

    @property
    def free(self) -> bool:
        """Whether the rule may decide over this site."""
        return self.reason is Reason.DEFAULT and self.precision.bits is not None


@dataclass(slots=True)
class _Oracle:
    """Measures every choice once, and counts."""

    measure: Measure
    known: dict[tuple[frozenset[str], frozenset[str]], float] = field(default_factory=dict)

    def __call__(self, quantized: frozenset[str], kept: frozenset[str] = _NONE) -> float:
        if not quantized and not kept:
            return 0.0
        if (quantized, kept) not in self.known:
            self.known[quantized, kept] = self.measure(quantized, kept)
        return self.known[quantized, kept]


def decide(
    sites: Sequence[Site],
    ranges: Ranges,
    recipe: Recipe,
    model: ModelRef,
    *,
    unmatched: Sequence[Unmatched] = (),
    origin: str = "",
    measure: Measure | None = None,
    tokens: int = 0,
    token_text: Callable[[int], str] | None = None,
) -> Plan:
    """Decide the precision of every site.

    With `measure`, rule `auto`: candidates (ratio above the recipe's) are ordered by the KL of quantizing each
    alone, and the smallest prefix of that order is kept that meets the KL budget within the cap (with the recipe's
    margin where the cap allows it: other text costs more or less than calibration text). Where the cap does not
    suffice, it is the smallest prefix that wins back the asked share of what the cap wins back. With `spike_ratio`,
    the ratio rule: keep what exceeds it (QFeM, arXiv 2405.14428), no evaluation. With neither, candidates are kept
    in the order of their ratio, as many as the cap allows.

    Args:
        sites: every site of the model.
        ranges: what calibration saw, by input value.
        recipe: what the user wants.
        model: which model this is.
        unmatched: nodes that were not understood.
        origin: where the calibration data came from.
        measure: evaluates a set of integer sites; called once for each distinct set.
        tokens: how many tokens `measure` runs on, to be noted.
        token_text: decodes a token id, to be noted beside it.

    Raises:
        UsageError: a pattern of the recipe fits no site, or nothing is left to quantize.
    """
    choices = {site.key: _start(site, ranges.values.get(site.input), recipe) for site in sites}
    _apply_overrides(choices, recipe)
    if recipe.spike_ratio is not None or measure is None:
        search, met = _by_ratio(choices, recipe)
    else:
        search, met = _by_kl(choices, recipe, _Oracle(measure))
        search.tokens = tokens
    return Plan(
        model=model,
        recipe=recipe,
        calibration=CalibrationRef(
            digest=ranges.data_digest, tokens=ranges.tokens, sequences=ranges.sequences, origin=origin
        ),
        search=search,
        sites=[_planned(choice, token_text) for choice in choices.values()],
        budget_met=met,
        unmatched=[UnmatchedNode(node=u.node, reason=u.reason) for u in unmatched],
    )


def high_precision(recipe: Recipe, stored: str) -> Precision:
    """What a kept site becomes: as the graph has it, or what the recipe asks for."""
    return Precision(stored if recipe.high_precision == "auto" else recipe.high_precision)


def _start(site: Site, seen: ValueRange | None, recipe: Recipe) -> _Choice:
    as_is = Precision(site.stored)
    if site.left_alone(recipe.quantize_lm_head):
        return _Choice(site, seen, as_is, Reason.DEFAULT, note=f"{site.role.value} stays as it is unless asked for")
    if seen is None:
        return _Choice(site, None, as_is, Reason.UNSUPPORTED, note="no range was measured for its input")
    return _Choice(site, seen, Precision.integer(recipe.bits), Reason.DEFAULT)


def _rules(recipe: Recipe) -> list[tuple[str, str, str]]:
    """What was set by hand: pattern, what is wanted, and where it was said; the last match wins."""
    rules = [(pattern, "stored", "ignore") for pattern in recipe.ignore]
    rules += [(o.pattern, o.precision, "overrides") for o in recipe.overrides]
    return rules + [(pattern, "high", "keep") for pattern in recipe.keep]


def by_hand(site: Site, recipe: Recipe) -> Precision | None:
    """The precision that the recipe sets for a site by hand."""
    hits = [wanted for pattern, wanted, _ in _rules(recipe) if matches(pattern, site.key, site.node)]
    if not hits:
        return None
    special = {"stored": Precision(site.stored), "high": high_precision(recipe, site.stored)}
    return special.get(hits[-1]) or Precision(hits[-1])


def _apply_overrides(choices: dict[str, _Choice], recipe: Recipe) -> None:
    for pattern, _, where in _rules(recipe):
        hit = [c for c in choices.values() if matches(pattern, c.site.key, c.site.node)]
        if not hit:
            raise UsageError(
                f"'{pattern}' fits no site", where=where, remedy="`spq-graph inspect MODEL` lists the keys of all sites"
            )
        for choice in hit:
            precision = by_hand(choice.site, recipe)
            if precision is None:
                continue
            if precision.bits is not None and choice.seen is None:
                raise UsageError(f"'{pattern}' asks for {precision} without a range", where=choice.site.key)
            choice.precision, choice.reason, choice.note = precision, Reason.OVERRIDE, f"by hand: {where} '{pattern}'"


def _is_high(choice: _Choice, recipe: Recipe) -> bool:
    return choice.precision is high_precision(recipe, choice.site.stored)


def _keep(choice: _Choice, recipe: Recipe, note: str) -> None:
    choice.precision = high_precision(recipe, choice.site.stored)
    choice.reason, choice.note = Reason.SPIKE, note


def _above(choices: dict[str, _Choice], threshold: float) -> list[_Choice]:
    """The sites whose ratio exceeds a threshold, which is noted at every site that was held against it."""
    free = [choice for choice in choices.values() if choice.free and choice.seen is not None]
    for choice in free:
        choice.threshold = threshold
    return [choice for choice in free if choice.seen is not None and choice.seen.ratio > threshold]


def _by_ratio(choices: dict[str, _Choice], recipe: Recipe) -> tuple[Search, bool]:
    threshold = recipe.spike_ratio if recipe.spike_ratio is not None else recipe.candidate_ratio
    hits = sorted(_above(choices, threshold), key=lambda c: (-c.seen.ratio if c.seen is not None else 0.0, c.site.key))
    # A ratio that was asked for is an order; the one that only marks candidates must not outgrow the cap.
    cap = len(hits) if recipe.spike_ratio is not None else _cap(choices, recipe)
    for rank, choice in enumerate(hits):
        choice.rank = rank
        if rank < cap:
            _keep(choice, recipe, f"max/median ratio above {threshold:g}")
        else:
            choice.reason, choice.note = Reason.BUDGET, f"the cap of {cap} sites is reached"
    return Search(rule="ratio", candidates=len(hits), cap=cap), len(hits) <= cap


def _counted(choices: dict[str, _Choice]) -> list[_Choice]:
    """The sites that count in shares."""
    return [c for c in choices.values() if c.free or c.reason is not Reason.DEFAULT]


def _cap(choices: dict[str, _Choice], recipe: Recipe) -> int:
    """How many sites the rule may keep: the recipe's share, less those that are kept by hand."""
    counted = _counted(choices)
    by_hand = sum(c.precision.bits is None and c.reason is Reason.OVERRIDE for c in counted)
    return max(0, math.floor(recipe.max_kept * len(counted)) - by_hand)


def _by_kl(choices: dict[str, _Choice], recipe: Recipe, oracle: _Oracle) -> tuple[Search, bool]:
    integers = frozenset(key for key, c in choices.items() if c.precision.bits is not None)
    # Kept by hand in the high precision; what else was set by hand runs as the graph has it.
    held = frozenset(key for key, c in choices.items() if c.reason is Reason.OVERRIDE and _is_high(c, recipe))
    cap = _cap(choices, recipe)

    def keeping(keys: Sequence[str]) -> float:
        return oracle(integers - frozenset(keys), held | frozenset(keys))

    everywhere = keeping([])
    search = Search(rule="auto", budget=recipe.kl_budget, cap=cap, kl_everywhere=_six(everywhere))
    candidates = _above(choices, recipe.candidate_ratio)
    order: list[_Choice] = []
    kept, met = 0, everywhere <= recipe.kl_budget
    if everywhere > _aim(recipe):
        for choice in candidates:
            choice.kl = _six(oracle(frozenset({choice.site.key})))
        order = sorted(candidates, key=lambda c: (-(c.kl or 0.0), c.site.key))
        keys = [c.site.key for c in order]
        kept, met = _smallest_prefix(lambda n: keeping(keys[:n]), min(cap, len(keys)), recipe)
    for rank, choice in enumerate(order):
        choice.rank = rank
        if rank < kept:
            _keep(choice, recipe, f"quantizing it alone costs KL {choice.kl:.3g}, place {rank + 1} of {len(order)}")
        else:
            choice.reason = Reason.BUDGET
            enough = met or kept < cap
            choice.note = "keeping it as well is not needed" if enough else f"the cap of {cap} sites is reached"
    search.candidates = len(candidates)
    search.kl = _six(keeping([c.site.key for c in order[:kept]]))
    search.evaluations = len(oracle.known)
    return search, met


def _aim(recipe: Recipe) -> float:
    return recipe.kl_budget * (1.0 - recipe.kl_margin)


def _smallest_prefix(kl_of: Callable[[int], float], cap: int, recipe: Recipe) -> tuple[int, bool]:
    """The smallest number of kept sites that meets the budget, or wins back the asked share; and whether it is met."""
    everywhere, best = kl_of(0), kl_of(cap)
    met = min(everywhere, best) <= recipe.kl_budget
    if best <= _aim(recipe):
        goal = _aim(recipe)
    elif everywhere <= recipe.kl_budget or best >= everywhere:
        return 0, met  # met as it is, or keeping wins nothing back: better not to pay for it
    else:
        goal = recipe.kl_budget if met else everywhere - recipe.recovery * (everywhere - best)
    low, high = 0, cap  # kl_of(low) > goal >= kl_of(high)
    while high - low > 1:
        middle = (low + high) // 2
        if kl_of(middle) <= goal:
            high = middle
        else:
            low = middle
    return high, met


def _planned(choice: _Choice, token_text: Callable[[int], str] | None) -> SitePlan:
    site, seen = choice.site, choice.seen
    evidence = Evidence(kl=choice.kl, rank=choice.rank, threshold=choice.threshold, note=choice.note)
    if seen is not None:
        evidence = evidence.model_copy(update={
            "ratio": _six(seen.ratio), "sequence_ratio": _six(seen.sequence_ratio), "max": _six(seen.peak.value),
            "median": _six(seen.median),
        })  # fmt: skip
        if seen.peak.token >= 0:
            text = token_text(seen.peak.token) if token_text is not None else None
            evidence = evidence.model_copy(
                update={"token": seen.peak.token, "token_text": text, "position": seen.peak.position}
            )
    return SitePlan(
        key=site.key,
        node=site.node,
        role=site.role,
        layer=site.layer,
        expert=site.expert,
        shape=site.shape,
        input=site.input,
        precision=choice.precision,
        reason=choice.reason,
        range=(seen.low, seen.high) if seen is not None else None,
        evidence=evidence,
    )


def _six(value: float) -> float:
    """Six significant digits: what is below them differs between machines and is not evidence."""
    return float(f"{value:.6g}")
