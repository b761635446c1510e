"""Which sites keep high precision, and why. Pure: no graph, no file; what costs time is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from spq_graph.decisions.choices import Choice, above, apply_overrides, assigned, cap_of, keep, planned, six, start
from spq_graph.decisions.kept_formats import candidates, pick
from spq_graph.documents.model_ref import ModelRef
from spq_graph.documents.plan import CalibrationRef, Plan, Reason, Search
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import ROUNDED, Recipe
from spq_graph.terms.errors import GraphError, NotFiniteError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Site, Unmatched

# KL(FP || model), nats a token, where the named sites have the given precisions and the rest is as the graph has it.
Measure = Callable[[Mapping[str, Precision]], float]
# The standard error of what a measure said of the same precisions; None where it is not known.
Stderr = Callable[[Mapping[str, Precision]], float | None]


@dataclass(slots=True)
class _Oracle:
    """Measures every choice once, and counts; one whose logits are not finite is infinitely far away."""

    measure: Measure
    stderr_of: Stderr | None
    known: dict[frozenset[tuple[str, Precision]], float] = field(default_factory=dict)
    errors: dict[frozenset[tuple[str, Precision]], NotFiniteError] = field(default_factory=dict)

    def __call__(self, precisions: Mapping[str, Precision]) -> float:
        """KL of these precisions."""
        if not precisions:
            return 0.0
        key = frozenset(precisions.items())
        if key not in self.known:
            try:
                self.known[key] = self.measure(precisions)
            except NotFiniteError as error:
                self.known[key], self.errors[key] = math.inf, error
        return self.known[key]

    def stderr(self, precisions: Mapping[str, Precision]) -> float | None:
        """Standard error of the KL of these precisions, to six digits; None where it is not known."""
        found = self.stderr_of(precisions) if self.stderr_of is not None and precisions else None
        return six(found) if found is not None else None

    def settled(self, precisions: Mapping[str, Precision]) -> float:
        """KL of what the plan is to be.

        Raises:
            NotFiniteError: its logits are not finite.
        """
        kl = self(precisions)
        if (error := self.errors.get(frozenset(precisions.items()))) is not None:
            raise error
        return kl


def decide(
    sites: Sequence[Site],
    ranges: Ranges,
    recipe: Recipe,
    model: ModelRef,
    *,
    stored: Mapping[str, Precision] = MappingProxyType({}),
    results: Mapping[str, float] = MappingProxyType({}),
    unmatched: Sequence[Unmatched] = (),
    origin: str = "",
    measure: Measure | None = None,
    stderr_of: Stderr | None = None,
    alone: Measure | None = None,
    alone_stderr_of: Stderr | None = None,
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

    What kept sites become is then measured too: with high precision `fp8`, for each site the FP8 format with the
    smaller KL; with `auto`, for all of them together, see `kept_formats.pick`.

    Args:
        sites: every site of the model.
        ranges: what calibration saw, by input value.
        recipe: what the user wants.
        model: which model this is.
        stored: format of each weight in the graph, by site key; float32 where it does not say.
        results: by site key, more than any result of its product was; for formats that do not hold all of them.
        unmatched: products that are no sites, and why.
        origin: where the calibration data came from.
        measure: KL of a choice of precisions; called once for each distinct choice.
        stderr_of: standard error of what `measure` said of a choice; None where it does not tell.
        alone: KL of one site alone, on fewer tokens: it only puts candidates in order; None for `measure`.
        alone_stderr_of: standard error of what `alone` said.
        tokens: how many tokens `measure` runs on, to be noted.
        token_text: decodes a token id, to be noted beside it.

    Raises:
        UsageError: a pattern of the recipe fits no site, or nothing is left to quantize.
    """
    choices = {
        site.key: start(
            site, stored.get(site.key, Precision.FP32), ranges.values.get(site.input), recipe, results.get(site.key)
        )
        for site in sites
    }
    apply_overrides(choices, recipe)
    if recipe.spike_ratio is not None or measure is None:
        search, met = _by_ratio(choices, recipe)
    else:
        oracle = _Oracle(measure, stderr_of)
        search, met = _by_kl(choices, recipe, oracle, _Oracle(alone, alone_stderr_of) if alone is not None else oracle)
        search.tokens = tokens
    return Plan(
        model=model,
        recipe=recipe,
        calibration=CalibrationRef(
            digest=ranges.data_digest, tokens=ranges.tokens, sequences=ranges.sequences, origin=origin
        ),
        search=search,
        sites=[planned(choice, token_text) for choice in choices.values()],
        budget_met=met,
        unmatched=list(unmatched),
    )


def _by_ratio(choices: dict[str, Choice], recipe: Recipe) -> tuple[Search, bool]:
    threshold = recipe.spike_ratio if recipe.spike_ratio is not None else recipe.candidate_ratio
    hits = sorted(above(choices, threshold), key=lambda c: (-c.seen.ratio if c.seen is not None else 0.0, c.site.key))
    # A ratio that was asked for is an order; the one that only marks candidates must not outgrow the cap.
    cap = len(hits) if recipe.spike_ratio is not None else cap_of(choices, recipe)
    for rank, choice in enumerate(hits):
        choice.rank = rank
        if rank < cap:
            keep(choice, f"max/median ratio above {threshold:g}")
        else:
            choice.reason, choice.note = Reason.BUDGET, f"the cap of {cap} sites is reached"
    return Search(rule="ratio", candidates=len(hits), cap=cap), len(hits) <= cap


def _by_kl(choices: dict[str, Choice], recipe: Recipe, oracle: _Oracle, single_oracle: _Oracle) -> tuple[Search, bool]:
    cap = cap_of(choices, recipe)

    def keeping(keys: Collection[str]) -> float:
        return oracle(assigned(choices, keys, recipe))

    everywhere = keeping([])
    search = Search(rule="auto", budget=recipe.kl_budget, cap=cap, kl_everywhere=_told(everywhere))
    search.kl_everywhere_stderr = oracle.stderr(assigned(choices, [], recipe))
    found = above(choices, recipe.candidate_ratio)
    order: list[Choice] = []
    alone: dict[str, float] = {}
    kept, met = 0, everywhere <= recipe.kl_budget
    if everywhere > recipe.kl_aim:
        for choice in found:
            single = {choice.site.key: choice.precision}
            alone[choice.site.key] = six(single_oracle(single))
            choice.kl, choice.kl_stderr = _told(alone[choice.site.key]), single_oracle.stderr(single)
        order = sorted(found, key=lambda c: (-alone[c.site.key], c.site.key))
        keys = [c.site.key for c in order]
        kept, met = _smallest_prefix(lambda n: keeping(keys[:n]), min(cap, len(keys)), recipe)
        if not met:  # what is left to try is part of the result
            search.kl_at_cap, search.kl_candidates = _told(keeping(keys[:cap])), _told(keeping(keys))
    names = [c.site.key for c in order[:kept]]
    _settle_formats(choices, names, recipe, oracle, everywhere, search)
    for rank, choice in enumerate(order):
        choice.rank = rank
        if rank < kept:
            cost = f"{alone[choice.site.key]:.3g}"
            error = f" ± {choice.kl_stderr:.1g}" if choice.kl_stderr is not None else ""
            keep(choice, f"quantizing it alone costs KL {cost}{error}, place {rank + 1} of {len(order)}")
        else:
            choice.reason = Reason.BUDGET
            enough = met or kept < cap
            choice.note = "keeping it as well is not needed" if enough else f"the cap of {cap} sites is reached"
    final = oracle.settled(assigned(choices, names, recipe))
    search.candidates = len(found)
    search.kl, search.kl_stderr = six(final), oracle.stderr(assigned(choices, names, recipe))
    search.evaluations = len(oracle.known) + (len(single_oracle.known) if single_oracle is not oracle else 0)
    return search, final <= recipe.kl_budget


def _settle_formats(
    choices: dict[str, Choice], names: Sequence[str], recipe: Recipe, oracle: _Oracle, everywhere: float, search: Search
) -> None:
    """Measure what kept sites may become, where the recipe leaves that open, and give it to them."""
    kept = [c for key, c in choices.items() if key in names or c.wants_high]
    if not kept or recipe.high_precision not in ("auto", "fp8"):
        return
    if recipe.high_precision == "fp8":
        for choice in kept:
            errors = {p: six(_error(oracle, {choice.site.key: p})) for p in ROUNDED if recipe.allows(p)}
            choice.set_high(min(errors, key=lambda p: errors[p]), recipe)
            choice.formats = {p.value: e for p, e in errors.items() if math.isfinite(e)}
    else:
        stored = frozenset(c.stored for c in kept)
        errors = {p: six(_error(oracle, assigned(choices, names, recipe, p))) for p in candidates(recipe, stored)}
        as_is = oracle(assigned(choices, names, recipe))
        best = pick(errors, as_is, everywhere, recipe)
        errors_told = {**{p.value: e for p, e in errors.items()}, "as_is": six(as_is)}
        search.formats = {name: e for name, e in errors_told.items() if math.isfinite(e)}
        if best is not None:
            for choice in kept:
                choice.set_high(best, recipe)
    for choice in kept:
        if choice.wants_high:
            choice.precision = choice.high


def _told(kl: float) -> float | None:
    """A KL as it is written down; None where it is infinite."""
    return six(kl) if math.isfinite(kl) else None


def _error(oracle: _Oracle, precisions: Mapping[str, Precision]) -> float:
    """Infinite where the graph cannot have a format, such as a weight beyond float16."""
    try:
        return oracle(precisions)
    except GraphError:
        return math.inf


def _smallest_prefix(kl_of: Callable[[int], float], cap: int, recipe: Recipe) -> tuple[int, bool]:
    """The smallest number of kept sites that meets the budget, or wins back the asked share; and whether it is met."""
    everywhere, best = kl_of(0), kl_of(cap)
    met = min(everywhere, best) <= recipe.kl_budget
    if best <= recipe.kl_aim:
        goal = recipe.kl_aim
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
