"""Which sites keep high precision, and why. Pure: no graph, no file; what costs time is passed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from spq_graph.decisions import smoothing
from spq_graph.decisions.branches import NONE, everywhere
from spq_graph.decisions.by_kl import ByKl
from spq_graph.decisions.choices import Choice, above, apply_overrides, cap_of, keep, planned, start
from spq_graph.decisions.ends import settle_ends
from spq_graph.decisions.oracle import Measure, Oracle, Stderr, Together
from spq_graph.decisions.smoothing import Smoothing
from spq_graph.decisions.treated import treated
from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.model_ref import ModelRef
from spq_graph.documents.plan import Plan, Reason
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.search import Search
from spq_graph.documents.treatment import Treatment
from spq_graph.remedies.smooth import UNSCALED
from spq_graph.terms.absorber import Absorbers
from spq_graph.terms.held import Held
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Site, Unmatched


def decide(
    sites: Sequence[Site],
    ranges: Ranges,
    recipe: Recipe,
    model: ModelRef,
    *,
    stored: Mapping[str, Precision] = MappingProxyType({}),
    results: Mapping[str, float] = MappingProxyType({}),
    held: Mapping[str, Held] = MappingProxyType({}),
    unmatched: Sequence[Unmatched] = (),
    origin: str = "",
    measure: Measure | None = None,
    stderr_of: Stderr | None = None,
    alone: Measure | None = None,
    alone_stderr_of: Stderr | None = None,
    alone_together: Together | None = None,
    tokens: int = 0,
    absorbers: Absorbers | None = None,
    standing: Sequence[Treatment] = (),
    token_text: Callable[[int], str] | None = None,
) -> Plan:
    """Decide the precision of every site.

    With `measure`, rule `auto`: candidates (ratio above the recipe's; of many, see `costliest`) are ordered by the KL
    of quantizing each alone, and the smallest prefix of that order is kept that meets the KL budget within the cap
    (with the recipe's margin where the cap allows it: other text costs more or less than calibration text). Where the
    cap does not suffice, it is the smallest prefix that wins back the asked share of what the cap wins back. With
    `spike_ratio`, the ratio rule: keep what exceeds it (QFeM, arXiv 2405.14428), no evaluation. With neither,
    candidates are kept in the order of their ratio, as many as the cap allows.

    What kept sites become is then measured too: with high precision `fp8`, for each site the FP8 format with the
    smaller KL; with `auto`, for all of them together, see `kept_formats.pick`.

    Args:
        sites: every site of the model, embeddings among them.
        ranges: what calibration saw, by input value.
        recipe: what the user wants.
        model: which model this is.
        stored: format of each weight in the graph, by site key; float32 where it does not say.
        results: by site key, more than any result of its product was; for formats that do not hold all of them.
        held: how what heads and embeddings read lies in the file, by site key; of others nothing is decided.
        unmatched: products that are no sites, and why.
        origin: where the calibration data came from.
        measure: KL of a choice of precisions; called once for each distinct choice.
        stderr_of: standard error of what `measure` said of a choice; None where it does not tell.
        alone: KL of one site alone, on fewer tokens: it only puts candidates in order; None for `measure`.
        alone_stderr_of: standard error of what `alone` said.
        alone_together: what `alone` says of several choices, measured side by side; None where nothing does that.
        tokens: how many tokens `measure` runs on, to be noted.
        absorbers: what takes factors of channels; None where nothing is to be smoothed.
        standing: treatments that the ranges come from already.
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
        settle_ends(choices.values(), held, recipe, None)
        treated = _unmeasured(choices, recipe, absorbers)
    else:
        oracle = Oracle(measure, stderr_of)
        single = Oracle(alone, alone_stderr_of, together=alone_together) if alone is not None else oracle
        search, met, treated = ByKl(choices, held, recipe, oracle, single, absorbers).run()
        search.tokens = tokens
    if recipe.scales == "by_token":
        search.scales = "by_token"
    return Plan(
        model=model,
        recipe=recipe,
        calibration=CalibrationRef(
            digest=ranges.data_digest, tokens=ranges.tokens, sequences=ranges.sequences, origin=origin
        ),
        search=search,
        sites=[planned(choice, token_text) for choice in choices.values()],
        treatments=[*standing, *treated],
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


def _unmeasured(choices: dict[str, Choice], recipe: Recipe, absorbers: Absorbers | None) -> list[Treatment]:
    """Smoothing and branches by hand, of as many channels as the recipe allows: nothing says that fewer will do."""
    remedies, scales, branches = recipe.remedies, UNSCALED, NONE
    if remedies.smooth.use == "always" and absorbers is not None:
        scales = Smoothing(choices, recipe, absorbers).by_hand()
        smoothing.scale(choices.values(), scales)
    if remedies.peel.use == "always":
        branches = everywhere(choices.values(), recipe, remedies.peel.channels[-1])
    return treated(choices, recipe, absorbers, scales, branches)
