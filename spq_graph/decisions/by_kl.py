"""Which sites keep high precision and which activations get a branch, by measured KL. Pure: measuring is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from spq_graph.decisions.branches import NONE, Branches, everywhere, integer_readers, reach, treatments
from spq_graph.decisions.choices import Choice, above, assigned, cap_of, keep, six
from spq_graph.decisions.ends import Measured, settle_ends
from spq_graph.decisions.kept_formats import candidates, pick
from spq_graph.decisions.oracle import Oracle
from spq_graph.documents.plan import Reason
from spq_graph.documents.recipe import ROUNDED, Recipe
from spq_graph.documents.search import Search
from spq_graph.documents.treatment import Cause, Treatment
from spq_graph.terms.errors import GraphError
from spq_graph.terms.held import Held
from spq_graph.terms.precision import Precision

# Beside branches so many sites are measured alone, or twice as many as may be kept; the rest cannot cost much.
FEWEST_MEASURED = 32


@dataclass(slots=True)
class ByKl:
    """The rule `auto`: the cheapest set of kept sites and outlier branches that meets the budget.

    Precision alone comes first: a model that few kept sites make whole needs no more operators. Where it does not
    suffice within the cap, the fewest channels of the recipe are peeled off at every activation whose range they
    narrow, nothing kept, that meet the budget; and where the most do not, sites are kept besides, in the order of what
    each costs with its branch.

    Attributes:
        choices: what is known of every site, by key.
        held: what head and embedding may become, by key.
        oracle: measures on all tokens.
        single: measures on fewer, what is only put in order.
        search: what was found; made by `run`.
    """

    choices: dict[str, Choice]
    held: Mapping[str, Held]
    recipe: Recipe
    oracle: Oracle
    single: Oracle
    search: Search = field(init=False)
    cap: int = field(init=False)
    _alone: dict[str, float] = field(default_factory=dict)

    def run(self) -> tuple[Search, bool, list[Treatment]]:
        """Decide over every choice; what was measured, whether the budget is met, and the treatments."""
        recipe, oracle = self.recipe, self.oracle
        self.cap = cap_of(self.choices, recipe)
        everywhere = self._keeping([])
        self.search = Search(rule="auto", budget=recipe.kl_budget, cap=self.cap, kl_everywhere=told(everywhere))
        self.search.kl_everywhere_stderr = oracle.stderr(self._assigned([]))
        found = above(self.choices, recipe.candidate_ratio)
        order: list[Choice] = []
        kept, met, needed = 0, everywhere <= recipe.kl_budget, everywhere > recipe.kl_aim
        use = recipe.remedies.peel.use
        if needed and (use == "never" or (use == "auto" and self._precision_can(found))):
            order, kept, met = self._keep(found)
        if use == "always" or (use == "auto" and needed and not met):
            if self._peel():
                found = self._costliest()
                order, kept, met = self._keep(found) if self._keeping([]) > recipe.kl_aim else ([], 0, True)
            elif needed and not order:
                order, kept, met = self._keep(found)
        names = [c.site.key for c in order[:kept]]
        if not (oracle.branches and order):
            self._settle_formats(names, everywhere)
        self._thin(names)
        self._note(order, kept, met)
        ends = Measured(
            plan=lambda: _error(oracle, self._assigned(names)),
            alone=lambda one: (_error(self.single, one), self.single.stderr(one)),
        )
        settle_ends(self.choices.values(), self.held, recipe, ends)
        final = oracle.settled(self._assigned(names))
        self.search.candidates = len(found)
        self.search.kl, self.search.kl_stderr = six(final), oracle.stderr(self._assigned(names))
        self.search.evaluations = len(oracle.known) + (len(self.single.known) if self.single is not oracle else 0)
        return self.search, final <= recipe.kl_budget, self._treatments()

    def _assigned(self, names: Collection[str]) -> dict[str, Precision]:
        return assigned(self.choices, names, self.recipe)

    def _keeping(self, names: Collection[str]) -> float:
        return self.oracle(self._assigned(names))

    def _precision_can(self, found: Sequence[Choice]) -> bool:
        """Whether the budget is met with every candidate kept: otherwise no order of them is worth its measuring."""
        return bool(found) and self._keeping([c.site.key for c in found]) <= self.recipe.kl_budget

    def _keep(self, found: Sequence[Choice]) -> tuple[list[Choice], int, bool]:
        """Candidates by what each costs alone, the costliest first; how many to keep; and whether the budget is met."""
        alone = self._alone
        for choice in found:
            single = {choice.site.key: choice.precision}
            alone[choice.site.key] = six(self.single(single))
            choice.kl, choice.kl_stderr = told(alone[choice.site.key]), self.single.stderr(single)
        order = sorted(found, key=lambda c: (-alone[c.site.key], c.site.key))
        keys = [c.site.key for c in order]
        if self.oracle.branches:
            # More sites in a small and fast format are better than fewer in one that is neither: here a format comes
            # first, and as many sites as it leaves room for.
            self._settle_formats(keys[: self.cap], self._keeping([]), whole=True)
        kept, met = self._prefix(keys)
        if not met:  # what is left to try is part of the result
            self.search.kl_at_cap = told(self._keeping(keys[: self.cap]))
            self.search.kl_candidates = told(self._keeping(keys))
        return order, kept, met

    def _prefix(self, keys: Sequence[str]) -> tuple[int, bool]:
        """The smallest number of kept sites that will do, and whether the budget is met.

        With branches, what lies between none and the most is looked for on fewer tokens, by how much more those cost
        than all, and what was found is then held against all of them.
        """
        most, aim = min(self.cap, len(keys)), self.recipe.kl_aim
        if not self.oracle.branches or self.single is self.oracle:
            return _smallest_prefix(lambda n: self._keeping(keys[:n]), most, self.recipe)
        scale = self._keeping([]) / (self.single(self._assigned([])) or 1.0)

        def roughly(number: int) -> float:
            if number in (0, most):
                return self._keeping(keys[:number])
            return scale * self.single(self._assigned(keys[:number]))

        kept, met = _smallest_prefix(roughly, most, self.recipe)
        goal = aim if self._keeping(keys[:most]) <= aim else self.recipe.kl_budget
        while met and kept < most and self._keeping(keys[:kept]) > goal:
            kept = min(most, kept + max(1, (most - kept) // 4))
        return kept, met

    def _peel(self) -> bool:
        """Give every activation that gains by it a branch, of as few channels as will do; whether that helps."""
        before, tried = self._keeping([]), {}
        for count in self.recipe.remedies.peel.channels:
            if not (branches := everywhere(self.choices.values(), self.recipe, count)):
                continue
            self._branch(branches)
            tried[count] = (self._keeping([]), branches)
            if tried[count][0] <= self.recipe.kl_aim:
                break
        self._branch(NONE)
        if not tried:
            return False
        self.search.kl_peeled = {str(count): six(kl) for count, (kl, _) in tried.items() if math.isfinite(kl)}
        kl, branches = min(tried.values(), key=lambda t: t[0])
        if not kl < before and self.recipe.remedies.peel.use != "always":
            return False
        self._branch(branches)
        return True

    def _branch(self, branches: Branches) -> None:
        self.oracle.branches = self.single.branches = branches

    def _costliest(self) -> list[Choice]:
        """Sites that may be kept beside branches: those whose range is still the widest for what is common there."""
        free = [c for c in self.choices.values() if c.free and c.seen is not None]
        free.sort(key=lambda c: (-reach(c, self.oracle.branches), c.site.key))
        for choice in self.choices.values():
            choice.kl = choice.kl_stderr = choice.threshold = None
        return free[: max(FEWEST_MEASURED, 2 * self.cap)]

    def _thin(self, names: Sequence[str]) -> None:
        """Take the next smaller number of channels wherever the budget still holds, where that costs least first."""
        whole, recipe = self.oracle.branches, self.recipe
        count = max((len(b.change.channels) for b in whole.values()), default=0)
        smaller = max((n for n in recipe.remedies.peel.channels if n < count), default=0)
        if not smaller or not self._keeping(names) <= recipe.kl_aim:
            return
        read = integer_readers(self.choices, self._assigned(names))
        fewer = {v: b for v, b in everywhere(self.choices.values(), recipe, smaller).items() if v in whole}
        reader = {c.site.input: c for c in self.choices.values()}
        # What rounding costs goes with the square of the reach, up to a factor that all have.
        loss = {v: reach(reader[v], fewer) ** 2 - reach(reader[v], whole) ** 2 for v in whole}
        order = sorted((v for v in whole if v in read), key=lambda v: (loss[v], v))

        def thinned(number: int) -> Branches:
            taken = set(order[:number])
            return {v: b for v, b in whole.items() if v not in taken} | {v: fewer[v] for v in taken if v in fewer}

        precisions = self._assigned(names)
        scale = self.oracle(precisions) / (self.single(precisions) or 1.0)
        low, high = 0, len(order) + 1  # thinned(low) meets the aim, thinned(high) does not, or is not there
        while high - low > 1:
            middle = (low + high) // 2
            self._branch(thinned(middle))
            low, high = (middle, high) if scale * self.single(precisions) <= recipe.kl_aim else (low, middle)
        self._branch(thinned(low))
        while low and self.oracle(precisions) > recipe.kl_aim:
            low = low * 3 // 4
            self._branch(thinned(low))

    def _note(self, order: Sequence[Choice], kept: int, met: bool) -> None:
        """Say at every candidate why it is kept or not."""
        for rank, choice in enumerate(order):
            choice.rank = rank
            if rank < kept:
                error = f" ± {choice.kl_stderr:.1g}" if choice.kl_stderr is not None else ""
                cost = f"{self._alone[choice.site.key]:.3g}{error}"
                keep(choice, f"quantizing it alone costs KL {cost}, place {rank + 1} of {len(order)}")
            else:
                choice.reason = Reason.BUDGET
                enough = met or kept < self.cap
                choice.note = (
                    "keeping it as well is not needed" if enough else f"the cap of {self.cap} sites is reached"
                )

    def _settle_formats(self, names: Sequence[str], everywhere: float, *, whole: bool = False) -> None:
        """Measure what kept sites may become, where the recipe leaves that open, and give it to them.

        Args:
            names: what is kept.
            everywhere: KL with none kept.
            whole: whether that may take all of the budget.
        """
        recipe, oracle, choices = self.recipe, self.oracle, self.choices
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
            as_is = self._keeping(names)
            best = pick(errors, as_is, everywhere, recipe, whole=whole)
            errors_told = {**{p.value: e for p, e in errors.items()}, "as_is": six(as_is)}
            self.search.formats = {name: e for name, e in errors_told.items() if math.isfinite(e)}
            if best is not None:
                for choice in kept:
                    choice.set_high(best, recipe)
        for choice in kept:
            if choice.wants_high:
                choice.precision = choice.high

    def _treatments(self) -> list[Treatment]:
        cause = Cause.OVERRIDE if self.recipe.remedies.peel.use == "always" else Cause.BUDGET
        return treatments(self.choices.values(), self.oracle.branches, cause)


def told(kl: float) -> float | None:
    """A KL as it is written down; None where it is infinite."""
    return six(kl) if math.isfinite(kl) else None


def _error(oracle: Oracle, precisions: Mapping[str, Precision]) -> float:
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
