"""The KL that decisions are measured by, on models that are never written."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from spq_graph.decisions.decide import Measure
from spq_graph.documents.plan import CalibrationRef, Plan, Reason, Search, SitePlan
from spq_graph.documents.ranges import Ranges
from spq_graph.documents.recipe import Recipe
from spq_graph.passes.apply import apply_plan
from spq_graph.runtime.measures.evaluate import KlMeter
from spq_graph.runtime.measures.finite import LogitsNotFiniteError
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.runtime.text.sequences import Sequences, spread
from spq_graph.terms.precision import Precision
from spq_graph.workbench.naming import in_source, once_quantized
from spq_graph.workbench.workbench import Workbench


def meter(
    bench: Workbench, sequences: Sequences, recipe: Recipe, ranges: Ranges, tick: Callable[[], None]
) -> tuple[Measure, int]:
    """A measure for `decide`, and how many tokens it runs on."""
    few = spread(sequences, recipe.sensitivity_tokens)
    kl_of = KlMeter(bench.reference, few)
    base = _skeleton(bench, ranges, recipe)
    stored = bench.stored

    def measure(precisions: Mapping[str, Precision]) -> float:
        plan = base.with_precisions(lambda s: precisions.get(s.key, stored[s.key]))
        # Sessions come and go by the dozen here, and ONNX Runtime's open the fastest: it stands in for any target.
        graph = apply_plan(bench.prepared, plan, plan.recipe.profile.emulation)
        try:
            result = kl_of.kl(SegmentedRunner(bench.segments(graph)))
        except LogitsNotFiniteError as error:
            if error.number is None:
                raise in_source(error, bench) from error
            tried = apply_plan(bench.prepared, plan, plan.recipe.profile.emulation)
            raise once_quantized(error, bench, tried, bench.model) from error
        finally:
            tick()
        return result

    return measure, kl_of.tokens


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
