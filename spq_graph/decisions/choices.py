"""What is known of every site while a plan comes about. Pure, as `decide` is."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from spq_graph.decisions.kept_formats import by_rule
from spq_graph.documents.plan import Evidence, Reason, SitePlan
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.value_range import ValueRange
from spq_graph.terms.errors import UsageError
from spq_graph.terms.naming import matches, nearest
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site


@dataclass(slots=True)
class Choice:
    """What is known of one site on the way to its plan.

    Attributes:
        stored: format of its weight in the graph.
        seen: what calibration saw at its input.
        high: what it becomes if it is kept.
        wants_high: whether it is kept by hand.
        instead: why the target made `high` another format than was asked for.
        smooth: what calibration would have seen with the factors that its channels have; None where they have none.
        result: more than any result of its product was on what calibration saw; None where that is not known.
    """

    site: Site
    stored: Precision
    seen: ValueRange | None
    precision: Precision
    reason: Reason
    high: Precision
    wants_high: bool = False
    kl: float | None = None
    kl_stderr: float | None = None
    rank: int | None = None
    threshold: float | None = None
    note: str | None = None
    formats: dict[str, float] | None = None
    instead: str | None = None
    result: float | None = None
    smooth: ValueRange | None = None

    @property
    def reads(self) -> ValueRange | None:
        """What its product reads: what calibration saw, with the factors of its channels in force."""
        return self.smooth or self.seen

    @property
    def largest(self) -> float | None:
        """Largest absolute number that its product reads, or may give; None where nothing is known."""
        known = [n for n in (largest_of(self.reads), self.result) if n is not None]
        return max(known, default=None)

    @property
    def free(self) -> bool:
        """Whether the rule may decide over this site."""
        return self.reason is Reason.DEFAULT and self.precision.bits is not None

    def set_high(self, wanted: Precision, recipe: Recipe) -> None:
        """Say what the site becomes if it is kept, or the nearest to it that the target can run."""
        if wanted is self.stored:
            self.high, self.instead = wanted, None  # as the graph has it: nothing is written
        else:
            self.high, self.instead = recipe.profile.settle(wanted, self.largest)


def largest_of(seen: ValueRange | None) -> float | None:
    """Largest absolute activation of a range."""
    return max(abs(seen.low), abs(seen.high)) if seen is not None else None


def start(
    site: Site, stored: Precision, seen: ValueRange | None, recipe: Recipe, result: float | None = None
) -> Choice:
    """What is known of a site before anything is decided: integers where nothing speaks against it."""
    choice = _start(site, stored, seen, recipe)
    choice.result = result
    choice.set_high(by_rule(recipe, stored, seen.ratio if seen is not None else None), recipe)
    return choice


def _start(site: Site, stored: Precision, seen: ValueRange | None, recipe: Recipe) -> Choice:
    if site.left_alone(recipe.quantize_lm_head):
        note = f"{site.role.value} stays as it is unless asked for"
        return Choice(site, stored, seen, stored, Reason.DEFAULT, stored, note=note)
    tokens = seen.tokens if seen is not None else 0
    if site.expert is not None and tokens < recipe.min_expert_tokens:
        note = (
            f"expert {site.expert} saw {tokens} tokens of the calibration data, and its range is trusted from "
            f"{recipe.min_expert_tokens} on (min_expert_tokens): calibrate on more text"
        )
        return Choice(site, stored, seen, stored, Reason.TOO_FEW_TOKENS, stored, note=note)
    if seen is None:
        note = "no range was measured for its input"
        return Choice(site, stored, None, stored, Reason.UNSUPPORTED, stored, note=note)
    precision = Precision.W8A8_TOKEN if recipe.scales == "by_token" else Precision.integer(recipe.bits)
    return Choice(site, stored, seen, precision, Reason.DEFAULT, stored)


def _rules(recipe: Recipe) -> list[tuple[str, str, str]]:
    """What was set by hand: pattern, what is wanted, and where it was said; the last match wins."""
    rules = [(pattern, "stored", "ignore") for pattern in recipe.ignore]
    rules += [(o.pattern, o.precision, "overrides") for o in recipe.overrides]
    return rules + [(pattern, "high", "keep") for pattern in recipe.keep]


def refuse_unfit_patterns(sites: Iterable[Site], recipe: Recipe) -> None:
    """Check that whatever a recipe sets by hand is there.

    Raises:
        UsageError: a pattern fits no site.
    """
    sites = list(sites)
    for pattern, _, where in _rules(recipe):
        if not any(matches(pattern, site.key, site.node) for site in sites):
            near = nearest(pattern, (site.key for site in sites))
            listed = "`spq-graph inspect MODEL` lists the keys of all sites"
            remedy = f"did you mean '{near}'? {listed}" if near is not None else listed
            raise UsageError(f"'{pattern}' fits no site", where=where, remedy=remedy)


def apply_overrides(choices: dict[str, Choice], recipe: Recipe) -> None:
    """Carry out what the recipe sets by hand.

    Raises:
        UsageError: a pattern fits no site, or asks for activations in a format without their range.
    """
    refuse_unfit_patterns((choice.site for choice in choices.values()), recipe)
    for pattern, wanted, where in _rules(recipe):
        named = [c for c in choices.values() if matches(pattern, c.site.key, c.site.node)]
        tables = [c for c in named if c.site.role is Role.EMBEDDING]
        for choice in tables:
            _table_by_hand(choice, recipe, wanted, f"{where} '{pattern}'", alone=len(tables) == len(named))
        for choice in (c for c in named if c.site.role is not Role.EMBEDDING):
            choice.wants_high = wanted == "high"
            special = {"stored": choice.stored, "high": choice.high}
            precision = special.get(wanted) or Precision(wanted)
            if precision.needs_range and choice.seen is None:
                raise UsageError(
                    f"'{pattern}' asks for {precision} without a range",
                    where=choice.site.key,
                    remedy="calibrate on data that reaches this site, or ask for fp32, which needs no range",
                )
            choice.precision, choice.reason, choice.note = precision, Reason.OVERRIDE, f"by hand: {where} '{pattern}'"
            if wanted not in special:
                choice.precision, why = recipe.profile.settle(precision, choice.largest)
                if why is not None:
                    choice.reason, choice.note = Reason.UNSUPPORTED, f"{choice.note}; {why}"


def _table_by_hand(choice: Choice, recipe: Recipe, wanted: str, where: str, *, alone: bool) -> None:
    """Carry out what a pattern sets of an embedding; what only products can be is not meant for it.

    Raises:
        UsageError: nothing but embeddings fits the pattern, and they cannot be what it asks for.
    """
    if wanted in ("stored", "high"):
        choice.precision, choice.reason, choice.note = choice.stored, Reason.OVERRIDE, f"by hand: {where}"
        return
    by_block = Precision(wanted).row.by_block
    to = Precision.W8A16 if by_block else Precision(wanted)
    if not recipe.profile.allows_at(choice.site.role, to):
        if alone:
            raise UsageError(
                f"{where} asks for {wanted}: {recipe.profile.why_not(to, choice.site.role)}",
                where=choice.site.key,
                remedy=f"ask for {choice.stored}, which is what the graph has",
            )
        return
    choice.precision = to if by_block else choice.stored
    choice.reason, choice.note = Reason.OVERRIDE, f"by hand: {where}"


def keep(choice: Choice, note: str) -> None:
    """Keep a site in its high precision."""
    choice.precision, choice.reason, choice.note = choice.high, Reason.SPIKE, note


def rank(order: Sequence[Choice], kept: int, alone: Mapping[str, float], cap: int | None) -> None:
    """Say at every candidate, in their order, why it is kept or not.

    Args:
        order: the costliest first.
        kept: how many of them are kept.
        alone: what each costs alone, by key.
        cap: how many may be kept, where that is what is in the way; None where no more is needed.
    """
    why = "keeping it as well is not needed" if cap is None else f"the cap of {cap} sites is reached"
    for place, choice in enumerate(order):
        choice.rank = place
        if place < kept:
            error = f" ± {choice.kl_stderr:.1g}" if choice.kl_stderr is not None else ""
            cost = f"{alone[choice.site.key]:.3g}{error}"
            keep(choice, f"quantizing it alone costs KL {cost}, place {place + 1} of {len(order)}")
        else:
            choice.reason, choice.note = Reason.BUDGET, why


def above(choices: dict[str, Choice], threshold: float) -> list[Choice]:
    """The sites whose ratio exceeds a threshold, which is noted at every site that was held against it."""
    free = [choice for choice in choices.values() if choice.free and choice.seen is not None]
    for choice in free:
        choice.threshold = threshold
    return [choice for choice in free if choice.seen is not None and choice.seen.ratio > threshold]


def _counted(choices: dict[str, Choice]) -> list[Choice]:
    """The sites that count in shares."""
    ours = [c for c in choices.values() if c.site.role is not Role.EMBEDDING]
    return [c for c in ours if c.free or c.reason is not Reason.DEFAULT]


def most_kept(recipe: Recipe, sites: int) -> int:
    """How many of so many sites may be kept."""
    return math.floor(recipe.max_kept * sites)


def cap_of(choices: dict[str, Choice], recipe: Recipe) -> int:
    """How many sites the rule may keep: the recipe's share, less those that are kept by hand."""
    counted = _counted(choices)
    by_hand = sum(c.precision.bits is None and c.reason is Reason.OVERRIDE for c in counted)
    return max(0, most_kept(recipe, len(counted)) - by_hand)


def rounded(choices: Mapping[str, Choice], precisions: Mapping[str, Precision]) -> list[str]:
    """Products that are in another format than the graph has them in; an embedding is none."""
    products = {key: c for key, c in choices.items() if c.site.role is not Role.EMBEDDING}
    return [key for key, to in precisions.items() if key in products and to is not products[key].stored]


def assigned(
    choices: dict[str, Choice], kept: Collection[str], recipe: Recipe, high: Precision | None = None
) -> dict[str, Precision]:
    """Every site that is not as the graph has it, where these are kept; in `high` instead of their own, if given."""

    def becomes(choice: Choice) -> Precision:
        return recipe.profile.settle(high, choice.largest)[0] if high is not None else choice.high

    precisions = {key: becomes(c) if key in kept or c.wants_high else c.precision for key, c in choices.items()}
    return {key: p for key, p in precisions.items() if p is not choices[key].stored}


def evidence_of(seen: ValueRange, token_text: Callable[[int], str] | None) -> Evidence:
    """What was measured at a site's input; token and position only where they are known."""
    known = seen.peak.token >= 0
    return Evidence(
        ratio=six(seen.ratio),
        sequence_ratio=six(seen.sequence_ratio),
        max=six(seen.peak.value),
        median=six(seen.median),
        token=seen.peak.token if known else None,
        token_text=token_text(seen.peak.token) if known and token_text is not None else None,
        position=seen.peak.position if known else None,
    )


def planned(choice: Choice, token_text: Callable[[int], str] | None) -> SitePlan:
    """What the plan says of a site."""
    seen, reason, note = choice.seen, choice.reason, choice.note
    if choice.instead is not None and (choice.wants_high or reason is Reason.SPIKE):
        reason, note = Reason.UNSUPPORTED, f"{note}; {choice.instead}"
    measured = evidence_of(seen, token_text) if seen is not None else Evidence()
    evidence = measured.model_copy(
        update={
            "kl": choice.kl,
            "kl_stderr": choice.kl_stderr,
            "rank": choice.rank,
            "threshold": choice.threshold,
            "note": note,
            "formats": choice.formats,
        }
    )
    return SitePlan(
        site=choice.site,
        precision=choice.precision,
        reason=reason,
        range=(seen.low, seen.high) if seen is not None else None,
        evidence=evidence,
    )


def six(value: float) -> float:
    """Six significant digits: what is below them differs between machines and is not evidence."""
    return float(f"{value:.6g}")


def told(kl: float) -> float | None:
    """A KL as it is written down; None where it is infinite."""
    return six(kl) if math.isfinite(kl) else None
