"""The KL that decisions are measured by, on models that are never written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.changes import Peel, Prefix, Scale
from spq_graph.documents.plan import Plan, Reason, SitePlan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.search import Search
from spq_graph.documents.treatment import Cause, of_prefix, tried
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.base.stock import Stock
from spq_graph.runtime.measures.asked import gives_last_only
from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.measures.kept import MEMORY
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.staged import Held, Origin
from spq_graph.runtime.text.sequences import Sequences, beginnings, spread
from spq_graph.terms.errors import NotFiniteError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from spq_graph.workbench.beside import Beside
from spq_graph.workbench.naming import in_source, once_quantized
from spq_graph.workbench.workbench import Workbench

Peels = Mapping[str, Peel]  # by activation value, its outlier branch
NO_PEELS: Peels = MappingProxyType({})
Scales = Mapping[str, Scale]  # by activation value, the factors of its channels
NO_SCALES: Scales = MappingProxyType({})
# Where a graph gives logits of the last token only, windows that long: each tells of one token, whatever it takes.
SHORT = 64
# Otherwise the beginnings of longer windows: more windows on as many tokens make a smaller standard error, and
# attention over them takes less.
WINDOW = 512
# Each candidate alone is measured on this share of the tokens: that only puts them in order, and what is kept in that
# order is then measured on all of them.
SHARE_ALONE = 8


Asked = tuple[Mapping[str, Precision], Peels, Scales]
"""Precisions by site key, and the outlier branches and factors of channels beside them, by activation value."""


@dataclass(slots=True)
class Gauge:
    """KL on so many tokens, with its standard error.

    Attributes:
        tokens: how many.
        together: measures several choices side by side, or says with None that this is not worth it; None where
            nothing does.
    """

    tokens: int
    _measure: Callable[[Mapping[str, Precision], Peels, Scales], Score]
    _scores: dict[object, Score] = field(default_factory=dict)
    together: Callable[[Sequence[Asked]], Sequence[Score | NotFiniteError] | None] | None = None

    def kl(self, precisions: Mapping[str, Precision], peels: Peels = NO_PEELS, scales: Scales = NO_SCALES) -> float:
        """KL of these precisions, outlier branches and factors of channels, nats a token."""
        return self.score(precisions, peels, scales).kl

    def score(self, precisions: Mapping[str, Precision], peels: Peels = NO_PEELS, scales: Scales = NO_SCALES) -> Score:
        """The same, with what its standard error is made of.

        Raises:
            NotFiniteError: logits are NaN or infinite.
        """
        score = self._scores[_key(precisions, peels, scales)] = self._measure(precisions, peels, scales)
        return score

    def kl_of_all(self, choices: Sequence[tuple[Any, ...]]) -> list[float | NotFiniteError] | None:
        """KL of several choices, each as `kl` takes one, measured side by side; None where they are not.

        One whose logits are not finite has the error in its place.
        """
        asked: list[Asked] = [(*one, *(NO_PEELS, NO_SCALES)[len(one) - 1 :]) for one in choices]
        found = self.together(asked) if self.together is not None else None
        if found is None:
            return None
        scores = {_key(*one): score for one, score in zip(asked, found, strict=True) if isinstance(score, Score)}
        self._scores |= scores
        return [score.kl if isinstance(score, Score) else score for score in found]

    def stderr(
        self, precisions: Mapping[str, Precision], peels: Peels = NO_PEELS, scales: Scales = NO_SCALES
    ) -> float | None:
        """Standard error of what `kl` said of the same; None where it is not known."""
        score = self._scores.get(_key(precisions, peels, scales))
        return score.kl_stderr if score is not None else None


def _key(precisions: Mapping[str, Precision], peels: Peels, scales: Scales) -> object:
    branches = frozenset((value, peel.channels) for value, peel in peels.items())
    return frozenset(precisions.items()), branches, _factors(scales)


def _factors(scales: Scales) -> object:
    return frozenset((value, scale.exponents) for value, scale in scales.items())


@dataclass(frozen=True, slots=True)
class Meter:
    """What `decide` measures by.

    Attributes:
        whole: on all tokens.
        alone: on a share of them, for candidates that are only put in order by it.
        fewer: why `whole` has fewer than the recipe asks for, in words; None where it has not.
    """

    whole: Gauge
    alone: Gauge
    fewer: str | None


def meter(
    bench: Workbench,
    sequences: Sequences,
    recipe: Recipe,
    ranges: Ranges,
    tick: Callable[[int], None],
    prefix: Prefix | None = None,
) -> Meter:
    """What decisions are measured by: KL against the source, on as many tokens as the recipe says.

    Args:
        bench: the source.
        sequences: what to measure on.
        recipe: how much of that, and how candidates are built.
        ranges: of the activations.
        tick: called after every pass, that of the source first, with its tokens in units of what a candidate alone is
            measured on.
        prefix: what candidates have in front of every sequence; the source has nothing there.
    """
    sequences = as_measured(bench, sequences, recipe)
    few = spread(sequences, recipe.sensitivity_tokens)
    base, stored = skeleton(bench, ranges, recipe), bench.stored
    # Encoding all weights takes as long as running thousands of tokens, and candidates have most of them in common.
    stock = Stock(lambda: Held(bench.work, memory=0).keep)

    def graph(precisions: Mapping[str, Precision], peels: Peels = NO_PEELS, scales: Scales = NO_SCALES) -> ir.Model:
        # Sessions come and go by the dozen here, and ONNX Runtime's open the fastest: it stands in for any target.
        plan = base.with_precisions(lambda s: precisions.get(s.key, stored[s.key]))
        sites = [s.site for s in plan.sites]
        before = [of_prefix(sites, prefix, Cause.TRIED)] if prefix is not None else []
        plan = plan.with_treatments(before + tried(sites, scales, peels))
        return apply_plan(bench.prepared, plan, recipe.profile.emulation, measured=True, stock=stock)

    source = apply_plan(bench.prepared, base, recipe.profile.emulation, measured=True, stock=stock)
    beside = Beside(bench, source, few)

    # The source with the factors that single candidates have: what lies in front of one is then not run again, while
    # beside the source itself every layer differs.
    scaled: dict[object, Origin] = {}

    def origin(batches: int | None, precisions: Mapping[str, Precision], scales: Scales) -> Origin | None:
        if batches is None or not scales:
            return None
        key = _factors(scales)
        if key not in scaled and len(precisions) == 1:
            scaled.clear()
            scaled[key] = beside.origin_of(graph({}, NO_PEELS, scales), batches)
        return scaled.get(key)

    def measure(batches: int | None, precisions: Mapping[str, Precision], peels: Peels, scales: Scales) -> Score:
        try:
            made = graph(precisions, peels, scales)
            return beside.score(made, batches, origin(batches, precisions, scales))
        except LogitsNotFiniteError as error:
            if error.number is None:
                raise in_source(error, bench) from error
            raise once_quantized(error, bench, graph(precisions, peels, scales), bench.model) from error
        finally:
            tick(SHARE_ALONE if batches is None else 1)

    kl_of = beside.meter
    tick(SHARE_ALONE)
    share = kl_of.batches_of(-(-kl_of.tokens // SHARE_ALONE))
    whole, alone = Gauge(kl_of.tokens, partial(measure, None)), Gauge(kl_of.tokens_of(share), partial(measure, share))
    return Meter(whole, alone, why_fewer(sequences, few, recipe, fits=kl_of.fits))


def as_measured(bench: Workbench, sequences: Sequences, recipe: Recipe) -> Sequences:
    """The sequences as long as decisions are measured on them."""
    if bench.decoder.fixed_shape[1] is not None:
        return sequences
    enough = max(WINDOW, -(-recipe.sensitivity_tokens // len(sequences)))  # few long windows are taken as they are
    return beginnings(sequences, None, SHORT if gives_last_only(bench.reference) else enough)


def why_fewer(sequences: Sequences, few: Sequences, recipe: Recipe, *, fits: int | None) -> str | None:
    """Why decisions are measured on fewer tokens than asked for; less than a row short is no reason."""
    if fits is not None:
        return (
            f"the log-probabilities of more fit neither {MEMORY >> 20} MiB of memory nor the disk of temporary files: "
            "make room there, or let TMPDIR name a folder that has more"
        )
    if len(few) == len(sequences) and few.tokens < recipe.sensitivity_tokens:
        return "the calibration data has no more"
    return None


def skeleton(bench: Workbench, ranges: Ranges, recipe: Recipe) -> Plan:
    """A plan with every measured site and every embedding as the graph has it: those to be measured are made of it."""
    sites = [
        SitePlan(
            site=s,
            precision=bench.stored[s.key],
            reason=Reason.DEFAULT,
            range=(seen.low, seen.high) if (seen := ranges.values.get(s.input)) is not None else None,
        )
        for s in bench.found.every
        if s.input in ranges.values or s.role is Role.EMBEDDING
    ]
    calibration = CalibrationRef(digest=ranges.data_digest, tokens=ranges.tokens, sequences=ranges.sequences)
    return Plan(
        model=bench.ref,
        recipe=recipe,
        calibration=calibration,
        search=Search(rule="none"),
        sites=sites,
        budget_met=True,
    )
