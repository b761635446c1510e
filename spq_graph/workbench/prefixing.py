"""A prefix for a model: its keys and values, the search for its tokens, and what a plan with it stands on."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from spq_graph.decisions.other_treatments import Footings
from spq_graph.decisions.prefix import Footing, Grown, KlBehind, grown, most_trials
from spq_graph.documents.changes import Prefix
from spq_graph.documents.plan import Plan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.treatment import Cause, of_prefix
from spq_graph.passes.adapt.prepared import Prepared
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.base.run import run
from spq_graph.passes.base.stock import Stock
from spq_graph.passes.changes.prefix import PrependPrefix
from spq_graph.passes.find.caches import find_caches
from spq_graph.remedies.prefix import spiking_tokens
from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.sessions.cache import Decoding
from spq_graph.runtime.sessions.staged import Held
from spq_graph.runtime.text.sequences import Ids, Sequences, spread
from spq_graph.terms.errors import GraphError, UsageError
from spq_graph.terms.precision import Precision
from spq_graph.terms.rows import Extent
from spq_graph.workbench.beside import Beside
from spq_graph.workbench.meter import as_measured, skeleton
from spq_graph.workbench.streams import open_stream
from spq_graph.workbench.workbench import Workbench

# What ranges name, beside BOS and the tokens that text rests at.
_SPIKING = 6
_RESTS = ("\n", ".")
MOST_CANDIDATES = 1 + len(_RESTS) + _SPIKING
# Of a proof: how many tokens it takes, and how far logits may be apart, of the largest: more is no rounding.
_PROVED, _ALIKE = 8, 1e-3
# Tokens that the search measures on: it tells apart what a prefix saves by the factor.
TRIAL_TOKENS = 2048


def prefix_of(bench: Workbench, tokens: Sequence[int]) -> Prefix:
    """A prefix of these tokens: their keys and values as the floating-point model computes them, from the beginning.

    Raises:
        GraphError: the graph has no cache of a known form.
        UsageError: there are more of them than a sequence may have, or one is not in the vocabulary.
    """
    find_caches(bench.prepared.graph.graph)
    if len(tokens) >= bench.sequence_length:
        raise UsageError(
            f"a prefix of {len(tokens)} tokens leaves nothing of a sequence of {bench.sequence_length}",
            where="remedies.prefix",
            remedy="give fewer tokens, or a longer --window",
        )
    vocabulary = bench.decoder.vocabulary
    if vocabulary is not None and (beyond := [token for token in tokens if token >= vocabulary]):
        raise UsageError(
            f"token {beyond[0]} is not one of the {vocabulary:,} that the model has",
            where="remedies.prefix.tokens",
            remedy="give ids of its vocabulary",
        )
    decoding = Decoding(bench.runner, 1)
    decoding.feed(np.array([tokens], np.int64))
    return Prefix.of(tuple(tokens), decoding.held)


def prove(bench: Workbench, prefix: Prefix) -> None:
    """Run the graph behind a prefix on a few tokens, and the source on both: whatever its form, they say the same.

    Raises:
        GraphError: they do not.
    """
    few = np.arange(_PROVED)[None] % (bench.decoder.vocabulary or _PROVED)
    wanted = bench.runner.logits(*_rows(np.concatenate([[prefix.tokens], few], axis=1)))[:, len(prefix.tokens) :]
    graph = bench.prepared.copy()
    run(graph, [PrependPrefix(prefix)])
    stream = open_stream(Prepared(bench.prepared.path, graph, runs=False), bench.memory, bench.logits)
    found = next(iter(stream.stream([_rows(few)])))
    size = float(np.abs(wanted).max())
    if found.shape != wanted.shape or not (off := float(np.abs(found - wanted).max())) <= _ALIKE * size:
        raise GraphError(
            "behind a prefix the graph does not say what the source does: its logits, of up to "
            f"{size:.3g}, differ by {off:.3g}",
            where=str(bench.model),
            remedy="leave the remedy out with --no-remedy prefix: this graph does not count what its cache holds",
        )


def _rows(ids: Ids) -> tuple[Ids, Ids]:
    return ids, np.ones_like(ids)


def footing(bench: Workbench, recipe: Recipe, ranges: Ranges, sequences: Sequences | None) -> Footing:
    """What a plan is to stand on: a prefix, where one is wanted and helps, and what calibration sees with it.

    Args:
        bench: the source.
        recipe: what is wanted of a prefix.
        ranges: what calibration saw without it.
        sequences: calibration data; None where nothing can be measured.

    Raises:
        GraphError, UsageError: as `prefix_of` and `prove`, where a prefix is wanted in any case.
    """
    settings = recipe.remedies.prefix
    if settings.use == "never" or (settings.use == "auto" and recipe.may_scale_by_token):
        return Footing(None, ranges.values)
    if sequences is None or bench.logits.output is None:
        bench.steps.remark("no prefix: it takes calibration data, and logits, to measure what a plan behind one costs")
        return Footing(None, ranges.values)
    found = Grown(settings.tokens, {}, {})
    try:
        if not settings.tokens:
            found = _searched(bench, recipe, ranges, sequences)
        if not found.tokens:
            return Footing(None, ranges.values, found.kls, found.alone)
        prefix = prefix_of(bench, found.tokens)
        prove(bench, prefix)
    except GraphError as error:
        if settings.use == "always":
            raise
        return Footing(None, ranges.values, found.kls, found.alone, f"{error.what}; {error.remedy}")
    if bench.tokenizer is not None and (twice := set(bench.tokenizer.prefix).intersection(found.tokens)):
        bench.steps.remark(
            f"the prefix holds token {min(twice)}, which the tokenizer puts in front of every text as well: it stands "
            "there twice, in what is measured too"
        )
    return Footing(prefix, bench.calibrate(sequences, prefix=prefix).values, found.kls, found.alone)


def _searched(bench: Workbench, recipe: Recipe, ranges: Ranges, sequences: Sequences) -> Grown:
    """The prefix that measuring speaks for, as a step."""
    with bench.steps.step("prefix", "Searching a prefix") as tick:
        trials, found = _Trials(bench, recipe, ranges, sequences), candidates(bench, ranges)

        def told(kl: KlBehind, tokens: tuple[int, ...]) -> float:
            tick(trials.done, most_trials(recipe, len(found)))
            return kl(tokens)

        return grown(found, partial(told, trials.kl), partial(told, trials.alone), recipe)


def all_footings(
    bench: Workbench, recipe: Recipe, ranges: Ranges, sequences: Sequences | None, extent: Extent | None
) -> Footings:
    """What a plan and the rows of its ladder stand on.

    Args:
        bench: the source.
        recipe: what is wanted of a prefix.
        ranges: what calibration saw without it.
        sequences: calibration data; None where nothing can be measured.
        extent: how much of a ladder there is to be; None for nothing.

    Raises:
        GraphError, UsageError: as `footing`.
    """
    own = footing(bench, recipe, ranges, sequences)
    control = None
    if own.prefix is not None and sequences is not None and extent is Extent.FULL:
        tokens = drawn(sequences, len(own.prefix.tokens), recipe.seed, own.prefix.tokens)
        prefix = prefix_of(bench, tokens)
        control = Footing(prefix, bench.calibrate(sequences, prefix=prefix).values)
    return Footings(own, Footing(None, ranges.values), control)


def candidates(bench: Workbench, ranges: Ranges) -> list[int]:
    """Tokens that may hold what spikes: BOS, what text rests at, and those at which activations are the largest."""
    tokenizer = bench.tokenizer
    bos = tokenizer.bos_id if tokenizer is not None else bench.source.bos_token_id
    rests = [tokenizer.encode(text) for text in _RESTS] if tokenizer is not None else []
    usual = [*([bos] if bos is not None else []), *(ids[0] for ids in rests if len(ids) == 1)]
    return list(dict.fromkeys([*usual, *spiking_tokens(ranges.values.values(), _SPIKING)]))


def drawn(sequences: Sequences, count: int, seed: int, but: Collection[int] = ()) -> list[int]:
    """So many tokens of those that the data has, drawn, but for these: of a vocabulary many are never seen."""
    there = [int(token) for token in np.unique(sequences.ids[sequences.mask == 1])]
    ordinary = [token for token in there if token not in but] or there
    found: list[int] = np.random.default_rng(seed).choice(ordinary, size=count).tolist()
    return found


class _Trials:
    """KL of everything quantized behind one prefix or another, on the same tokens.

    Args:
        bench: the source.
        recipe: at how many bits.
        ranges: of the source.
        sequences: calibration data, of which a share is used.
    """

    def __init__(self, bench: Workbench, recipe: Recipe, ranges: Ranges, sequences: Sequences) -> None:
        self.done = 0
        self._bench, self._recipe = bench, recipe
        self._few = spread(as_measured(bench, sequences, recipe), min(TRIAL_TOKENS, recipe.sensitivity_tokens))
        self._stock = Stock(lambda: Held(bench.work, memory=0).keep)
        self._source = skeleton(bench, ranges, recipe)
        self._beside = Beside(bench, self._applied(self._source), self._few)

    def kl(self, tokens: tuple[int, ...]) -> float:
        """KL of everything quantized behind these tokens, by ranges that are measured there, nats a token.

        Infinite where logits are not finite.
        """
        recipe, prefix = self._recipe, self._prefix(tokens)
        integer = Precision.integer(recipe.bits)
        plan = skeleton(self._bench, self._bench.observed(self._few, prefix=prefix), recipe)
        self.done += 1
        return self._scored(
            plan.with_precisions(
                lambda s: s.precision if s.range is None or s.site.left_alone(recipe.quantize_lm_head) else integer
            ),
            prefix,
        )

    def alone(self, tokens: tuple[int, ...]) -> float:
        """KL of the source behind these tokens, nats a token; infinite where logits are not finite."""
        return self._scored(self._source, self._prefix(tokens))

    def _prefix(self, tokens: tuple[int, ...]) -> Prefix | None:
        return prefix_of(self._bench, tokens) if tokens else None

    def _scored(self, plan: Plan, prefix: Prefix | None) -> float:
        if prefix is not None:
            plan = plan.with_treatments([of_prefix([s.site for s in plan.sites], prefix, Cause.TRIED)])
        try:
            return self._beside.score(self._applied(plan)).kl
        except LogitsNotFiniteError:
            return math.inf

    def _applied(self, plan: Plan) -> ir.Model:
        return apply_plan(self._bench.prepared, plan, self._recipe.profile.emulation, measured=True, stock=self._stock)
