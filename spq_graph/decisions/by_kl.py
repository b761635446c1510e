"""Which sites keep high precision and which activations get a branch, by measured KL. Pure: measuring is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate

from spq_graph.decisions.branches import NONE, Branches, everywhere, of_heads
from spq_graph.decisions.choices import Choice, above, assigned, cap_of, rank, rounded, six, told
from spq_graph.decisions.costliest import costliest
from spq_graph.decisions.ends import Measured, room_for_ends, settle_ends
from spq_graph.decisions.fewest import smallest_prefix
from spq_graph.decisions.formats import Formats
from spq_graph.decisions.oracle import Oracle, or_infinite
from spq_graph.decisions.smoothing import Smoothing, take_back
from spq_graph.decisions.thinning import thin
from spq_graph.decisions.treated import treated
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.search import Search
from spq_graph.documents.treatment import Treatment
from spq_graph.remedies.smooth import UNSCALED
from spq_graph.terms.absorber import Absorbers
from spq_graph.terms.held import Held
from spq_graph.terms.precision import Precision

# So many sites are measured alone, or as many as may be kept: those that cost most by their role.
FEWEST_MEASURED = 32
# With branches the default budget is easily met where a model is sensitive to little: sought is then what 8-bit weights
# alone cost, times this, and no less than so many nats a token.
_OF_WEIGHTS, _LEAST_SOUGHT = 1.5, 0.003
# Times the budget: what a few tokens put beyond that, all tokens do not put within it.
FAR = 2.0


@dataclass(slots=True)
class ByKl:
    """The rule `auto`: the cheapest set of kept sites, scales and outlier branches that meets the budget.

    Precision alone comes first: a model that few kept sites make whole needs no more operators. Otherwise all get
    scales by token, as far as target and recipe have them; where these cannot be had, channels are smoothed as far as
    that helps. Where that does not do, the fewest channels of the recipe are peeled off at every activation whose range
    they narrow, nothing kept; and where the most do not, sites are kept besides, by what each costs with its branch.

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
    absorbers: Absorbers | None = None
    search: Search = field(init=False)
    cap: int = field(init=False)
    sought: Recipe = field(init=False)
    body: Recipe = field(init=False)
    _room: float = 0.0
    _scale: float = 1.0
    _alone: dict[str, float] = field(default_factory=dict)

    def run(self) -> tuple[Search, bool, list[Treatment]]:
        """Decide over every choice; what was measured, whether the budget is met, and the treatments."""
        recipe, oracle = self.recipe, self.oracle
        self.cap = cap_of(self.choices, recipe)
        self._leave_room(recipe)
        everywhere = self._keeping([])
        self.search = Search(rule="auto", budget=recipe.kl_budget, cap=self.cap, kl_everywhere=told(everywhere))
        self.search.kl_everywhere_stderr = oracle.stderr(self._assigned([]))
        if recipe.remedies.smooth.use == "always":
            self._smooth()
            everywhere = self._keeping([])
        found = above(self.choices, recipe.candidate_ratio)
        order: list[Choice] = []
        kept, met, needed = 0, everywhere <= self.body.kl_budget, everywhere > self.body.kl_aim
        use = recipe.remedies.peel.use
        if needed and (use == "never" or (use == "auto" and self._precision_can(found))):
            order, kept, met = self._keep(found)
        if needed and not met and self._by_token():
            order, kept, met = [], 0, True
        elif use == "always" or (needed and not met):
            smoother = needed and recipe.remedies.smooth.use == "auto" and self._smooth()
            if smoother and self._keeping([]) <= self.body.kl_aim:
                order, kept, met = [], 0, True
            elif use != "never" and self._peel():
                found = self._costliest(self._beside_branches())
                order, kept, met = self._keep(found) if self._keeping([]) > self.body.kl_aim else ([], 0, True)
            elif needed and (smoother or (use != "never" and not order)):
                order, kept, met = self._keep(found)
        names = [c.site.key for c in order[:kept]]
        if not (oracle.branches and order):
            self._settle_formats(names, everywhere)
        self._thin(names)
        rank(order, kept, self._alone, None if met or kept < self.cap else self.cap)
        self._settle_ends(names)
        final = oracle.settled(self._assigned(names))
        self.search.candidates = len(found)
        self.search.kl, self.search.kl_stderr = six(final), oracle.stderr(self._assigned(names))
        self.search.evaluations = len(oracle.known) + (len(self.single.known) if self.single is not oracle else 0)
        branches = oracle.having({key: choice.precision for key, choice in self.choices.items()})
        made = treated(self.choices, recipe, self.absorbers, oracle.scales, branches)
        return self.search, final <= recipe.kl_budget, made

    def __post_init__(self) -> None:
        self.oracle.further = self.single.further = partial(of_heads, self.choices, self.held, self.recipe)

    def _settle_ends(self, names: Collection[str]) -> None:
        """Decide over head and embedding, once all else is."""
        by = Measured(plan=lambda: or_infinite(self.oracle, self._assigned(names)), alone=self._single)
        # Beside branches the plan is one for the operator library anyway.
        branches = bool(self.oracle.branches) and self.recipe.allows(Precision.W8A8_TOKEN)
        by_token = "by_token" in (self.search.scales, self.recipe.scales) or branches
        settle_ends(self.choices.values(), self.held, self.sought, by, self._room, by_token=by_token)

    def _leave_room(self, sought: Recipe) -> None:
        """Take from a budget what head and embedding are to cost: the rest is for all other sites."""
        self.sought = sought
        self._room = room_for_ends(self.choices.values(), self.held, sought, self._single)
        self.body = sought.model_copy(update={"kl_budget": self._for_all_else(sought)})

    def _for_all_else(self, recipe: Recipe) -> float:
        """What of a budget is left beside head and embedding."""
        return recipe.kl_budget - self._room / (1.0 - recipe.kl_margin)

    def _near_weights(self) -> None:
        """Where nobody asked for a budget, look for what costs no more than 8-bit weights alone do, about."""
        recipe, (target, precision) = self.recipe, self.recipe.profile.weight_only
        if "kl_budget" in recipe.model_fields_set or target != recipe.target:
            return
        weights = dict.fromkeys(rounded(self.choices, self._assigned([])), precision)
        kl = or_infinite(replace(self.oracle, scales=UNSCALED), weights)
        sought = max(_OF_WEIGHTS * kl, min(_LEAST_SOUGHT, recipe.kl_budget))
        self.search.kl_weights = told(kl)
        if sought < recipe.kl_budget:
            self.search.sought = six(sought)
            self._leave_room(recipe.model_copy(update={"kl_budget": six(sought)}))

    def _assigned(self, names: Collection[str]) -> dict[str, Precision]:
        return assigned(self.choices, names, self.recipe)

    def _keeping(self, names: Collection[str]) -> float:
        return self.oracle(self._assigned(names))

    def _single(self, precisions: Mapping[str, Precision]) -> tuple[float, float | None]:
        """KL of these alone, by few tokens, and its standard error."""
        return or_infinite(self.single, precisions), self.single.stderr(precisions)

    def _precision_can(self, found: Sequence[Choice]) -> bool:
        """Whether the budget is met with every candidate kept, and may be with the costliest: else no order helps."""
        every, budget = [c.site.key for c in found], self.body.kl_budget
        if not found or or_infinite(self.single, self._assigned(every)) > FAR * budget:
            return False
        some = [c.site.key for c in self._costliest(found)][: self.cap]
        enough = len(found) <= FEWEST_MEASURED or or_infinite(self.single, self._assigned(some)) <= FAR * budget
        return enough and self._keeping(every) <= budget

    def _keep(self, found: Sequence[Choice]) -> tuple[list[Choice], int, bool]:
        """Candidates by what each costs alone, the costliest first; how many to keep; and whether the budget is met."""
        alone = self._alone
        measured = self._costliest(found) if self.cap else ()  # where none may be kept, nothing depends on their order
        self.single.foresee({choice.site.key: choice.precision} for choice in measured)
        for choice in measured:
            single = {choice.site.key: choice.precision}
            alone[choice.site.key] = six(self.single(single))
            choice.kl, choice.kl_stderr = told(alone[choice.site.key]), self.single.stderr(single)
        order = sorted(found, key=lambda c: (-alone.get(c.site.key, 0.0), c.site.key))
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

        With branches sites cost the sum of what each costs alone, about: that says where to look.
        """
        most = min(self.cap, len(keys))
        if not self.oracle.branches:
            return smallest_prefix(lambda n: self._keeping(keys[:n]), most, self.body)
        # By token a kept site takes the bytes and the time of integers: what the KL leaves is better spent on channels.
        by_token = all(self.choices[key].high.row.by_token for key in keys[:most])
        if by_token and (kl := self._keeping(keys[:most])) < self._keeping([]):
            return most, kl <= self.body.kl_budget
        won = [0.0, *accumulate(self._alone[key] for key in keys[:most])]
        return smallest_prefix(lambda n: self._keeping(keys[:n]), most, self.body, won)

    def _by_token(self) -> bool:
        """Give all that is quantized by a range scales by token, and branches where these are needed as well.

        Returns:
            Whether that meets the budget; where it does not, everything is as it was.
        """
        static = {c.site.key: c.precision for c in self.choices.values() if c.free}
        if not (static and self.recipe.may_scale_by_token):
            return False
        for key in static:
            self.choices[key].precision = Precision.W8A8_TOKEN
        self._near_weights()
        kl = self._keeping([])
        self.search.kl_by_token = told(kl)
        use = self.recipe.remedies.peel.use
        if use == "always" or (use == "auto" and kl > self.body.kl_aim):
            self._peel()
        # What is sought beyond the budget, static scales with branches seldom reach, and dozens of measurements later.
        if self._keeping([]) <= self._for_all_else(self.recipe):
            self.search.scales = "by_token"
            for key in static:
                choice = self.choices[key]
                choice.kl = choice.kl_stderr = choice.threshold = None  # of static scales
                choice.note = f"static scales miss the KL budget with {self.cap} kept sites, the most that may be"
            return True
        for key, precision in static.items():
            self.choices[key].precision = precision
        self._branch(NONE)
        self._leave_room(self.recipe)
        self._scale, self.search.sought, self.search.kl_peeled = 1.0, None, None
        return False

    def _peel(self) -> bool:
        """Give every activation that gains by it a branch, of as few channels as will do; whether that helps."""
        counts = self.recipe.remedies.peel.channels
        offered = {n: found for n in counts if (found := everywhere(self.choices.values(), self.recipe, n))}
        if not offered:
            return False
        self._near_weights()
        before, tried, aim = self._keeping([]), dict[int, tuple[float, Branches]](), self.body.kl_aim
        self._scale_anew()
        for count, branches in offered.items():
            self._branch(branches)
            tried[count] = (or_infinite(self._roughly, self._assigned([])), branches)
            if tried[count][0] <= aim and self._keeping([]) <= aim:
                break
        self._branch(NONE)
        self.search.kl_peeled = {str(count): six(kl) for count, (kl, _) in tried.items() if math.isfinite(kl)}
        kl, branches = min(tried.values(), key=lambda t: t[0])
        if not kl < before and self.recipe.remedies.peel.use != "always":
            return False
        self._branch(branches)
        self._scale_anew()
        return True

    def _scale_anew(self) -> None:
        """Take from here on what few tokens say in proportion to what nothing kept costs on all."""
        few, whole = self.single(self._assigned([])), self._keeping([])
        self._scale = whole / few if few and math.isfinite(whole) and math.isfinite(few) else 1.0

    def _roughly(self, precisions: Mapping[str, Precision]) -> float:
        """KL as a few tokens have it, scaled to all."""
        return self._scale * self.single(precisions)

    def _smooth(self) -> bool:
        """Divide channels by powers of two where something takes them; whether that helps."""
        if self.absorbers is None:
            return False
        smooth = Smoothing(self.choices, self.recipe, self.absorbers)
        helps, self.search.kl_smoothed = smooth.settle(self.oracle, self.single)
        return helps

    def _branch(self, branches: Branches) -> None:
        self.oracle.branches = self.single.branches = branches

    def _beside_branches(self) -> list[Choice]:
        """Sites that may be kept beside branches, of which nothing that was measured without them holds."""
        for choice in self.choices.values():
            choice.kl = choice.kl_stderr = choice.threshold = None
        return [c for c in self.choices.values() if c.free and c.seen is not None]

    def _costliest(self, sites: Sequence[Choice]) -> list[Choice]:
        return costliest(sites, max(FEWEST_MEASURED, self.cap), self.oracle.branches, self.single)

    def _thin(self, names: Collection[str]) -> None:
        """No factors that the plan does without, and fewer channels wherever the budget still holds."""
        if found := take_back(self.choices, self.recipe, (self.oracle, self.single), names):
            self.search.kl_smoothed = {**(self.search.kl_smoothed or {}), **found}
        precisions = self._assigned(names)

        def measured(by: Callable[[Mapping[str, Precision]], float], branches: Branches) -> float:
            self._branch(branches)
            return by(precisions)

        rough, exact = partial(measured, self._roughly), partial(measured, self.oracle)
        self._branch(thin(self.choices, self.oracle.branches, precisions, self.body, rough, exact))

    def _settle_formats(self, names: Sequence[str], everywhere: float, *, whole: bool = False) -> None:
        """Measure what kept sites may become, and give it to them: see `Formats.settle`."""
        formats = Formats(self.choices, self.recipe, self.oracle, self._roughly)
        self.search.formats = formats.settle(names, everywhere, self.body, whole=whole) or self.search.formats
