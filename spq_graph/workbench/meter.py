"""The KL that decisions are measured by, on models that are never written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from spq_graph.documents.plan import CalibrationRef, Plan, Reason, Search, SitePlan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.passes.apply import apply_plan
from spq_graph.runtime.measures.asked import gives_last_only
from spq_graph.runtime.measures.evaluate import KlMeter
from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.measures.kept import MEMORY
from spq_graph.runtime.measures.score import Score
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.runtime.text.sequences import Sequences, spread
from spq_graph.terms.precision import Precision
from spq_graph.workbench.naming import in_source, once_quantized
from spq_graph.workbench.workbench import Workbench

# Where a graph gives logits of the last token only, windows that long: each tells of one token, whatever it takes.
SHORT = 64


@dataclass(slots=True)
class Meter:
    """A measure for `decide`.

    Attributes:
        tokens: how many it runs on.
        fewer: why these are fewer than the recipe asks for, in words; None where they are not.
    """

    tokens: int
    fewer: str | None
    _measure: Callable[[Mapping[str, Precision]], Score]
    _scores: dict[frozenset[tuple[str, Precision]], Score] = field(default_factory=dict)

    def kl(self, precisions: Mapping[str, Precision]) -> float:
        """KL of these precisions, nats a token."""
        score = self._scores[frozenset(precisions.items())] = self._measure(precisions)
        return score.kl

    def stderr(self, precisions: Mapping[str, Precision]) -> float | None:
        """Standard error of what `kl` said of these precisions; None where it is not known."""
        score = self._scores.get(frozenset(precisions.items()))
        return score.kl_stderr if score is not None else None


def meter(bench: Workbench, sequences: Sequences, recipe: Recipe, ranges: Ranges, tick: Callable[[], None]) -> Meter:
    """What decisions are measured by: KL against the source, on as many tokens as the recipe says."""
    if gives_last_only(bench.reference) and bench.decoder.fixed_shape[1] is None:
        sequences = beginnings(sequences, None, SHORT)
    few = spread(sequences, recipe.sensitivity_tokens)
    try:
        kl_of = KlMeter(bench.reference, few, folder=bench.work)
    except LogitsNotFiniteError as error:
        raise in_source(error, bench) from error
    base = _skeleton(bench, ranges, recipe)
    stored = bench.stored

    def measure(precisions: Mapping[str, Precision]) -> Score:
        plan = base.with_precisions(lambda s: precisions.get(s.key, stored[s.key]))
        # Sessions come and go by the dozen here, and ONNX Runtime's open the fastest: it stands in for any target.
        graph = apply_plan(bench.prepared, plan, plan.recipe.profile.emulation)
        try:
            result = kl_of.score(SegmentedRunner(bench.segments(graph), logits=bench.logits))
        except LogitsNotFiniteError as error:
            if error.number is None:
                raise in_source(error, bench) from error
            tried = apply_plan(bench.prepared, plan, plan.recipe.profile.emulation)
            raise once_quantized(error, bench, tried, bench.model) from error
        finally:
            tick()
        return result

    return Meter(kl_of.tokens, why_fewer(sequences, few, recipe, fits=kl_of.fits), measure)


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


def _skeleton(bench: Workbench, ranges: Ranges, recipe: Recipe) -> Plan:
    """A plan with every measured site as the graph has it, from which those to be measured are made."""
    sites = [
        SitePlan(
            site=s,
            precision=bench.stored[s.key],
            reason=Reason.DEFAULT,
            range=(ranges.values[s.input].low, ranges.values[s.input].high),
        )
        for s in bench.found.sites
        if s.input in ranges.values
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


def beginnings(sequences: Sequences, rows: int | None, length: int) -> Sequences:
    """So many rows at most, None for all, and so many tokens of each."""
    return replace(sequences, ids=sequences.ids[:rows, :length], mask=sequences.mask[:rows, :length])
