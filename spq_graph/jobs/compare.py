"""What two plans or artifacts have different."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from spq_graph.documents import artifact
from spq_graph.documents.changes import Prefix
from spq_graph.documents.findings import ComparedRung, Decision, Difference, InspectedSite, Pair
from spq_graph.documents.plan import Plan
from spq_graph.documents.report import Report
from spq_graph.jobs.inspect import inspect
from spq_graph.models.onnx_folder import onnx_of
from spq_graph.passes.files.read import size_of
from spq_graph.workbench.opening import Openable, Opening

T = TypeVar("T")


@dataclass(slots=True)
class _Side:
    """One of the two: what of a plan, a model and a report is there."""

    sites: dict[str, InspectedSite]
    plan: Plan | None = None
    report: Report | None = None
    operators: Mapping[str, int] = field(default_factory=dict)
    bytes: int | None = None


def compare(a: Openable, b: Openable) -> Difference:
    """What differs between two plans, OUT folders or .onnx files, in any combination; nothing of them is run.

    Raises:
        UsageError: a plan or report cannot be read.
        SourceError: a model cannot be read.
    """
    return _difference(*(_side(Path(Opening.of(model).source)) for model in (a, b)))


def _difference(a: _Side, b: _Side) -> Difference:
    decided = {key: Pair(_decision(a.sites[key]), _decision(b.sites[key])) for key in a.sites if key in b.sites}
    return Difference(
        same_model=a.plan.model.digest == b.plan.model.digest if a.plan and b.plan else None,
        changed={key: pair for key, pair in decided.items() if _differs(pair.a, pair.b)},
        only_a=[key for key in a.sites if key not in b.sites],
        only_b=[key for key in b.sites if key not in a.sites],
        branches=_pairs(_branches(a.plan), _branches(b.plan), absent=()) if a.plan and b.plan else {},
        factors=_pairs(_factors(a.plan), _factors(b.plan), absent=()) if a.plan and b.plan else {},
        prefix=_prefixes(a.plan.prefix, b.plan.prefix) if a.plan and b.plan else None,
        recipe=_pairs(_recipe(a.plan), _recipe(b.plan), absent=None) if a.plan and b.plan else {},
        operators=_pairs(a.operators, b.operators, absent=0) if a.operators and b.operators else {},
        bytes=Pair(a.bytes, b.bytes) if a.bytes is not None and b.bytes not in (None, a.bytes) else None,
        ladder=_rows(a.report, b.report),
    )


def _side(path: Path) -> _Side:
    if path.suffix == ".json" or ((path / artifact.PLAN).is_file() and not (path / artifact.MODEL).is_file()):
        plan = Plan.load(path / artifact.PLAN if path.is_dir() else path)
        return _Side(_by_key(map(InspectedSite.planned, plan.sites)), plan)
    file = onnx_of(path)
    found = inspect(path)
    side = _Side(_by_key(found.sites), operators=found.graph.operators)
    side.bytes = size_of(file)
    if path.is_dir() and (path / artifact.PLAN).is_file():
        side.plan = Plan.load(path / artifact.PLAN)
    if path.is_dir() and (path / artifact.REPORT).is_file():
        side.report = Report.load(path / artifact.REPORT)
    return side


def _by_key(sites: Iterable[InspectedSite]) -> dict[str, InspectedSite]:
    return {site.key: site for site in sites}


def _decision(site: InspectedSite) -> Decision:
    return Decision(site.precision, site.reason_name, site.evidence.ratio)


def _differs(a: Decision, b: Decision) -> bool:
    """A reason that is not recorded on one side is no difference."""
    both = a.reason is not None and b.reason is not None
    return a.precision != b.precision or (both and a.reason != b.reason)


def _recipe(plan: Plan) -> dict[str, Any]:
    return plan.recipe.model_dump(mode="json")


def _branches(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {value: peel.channels for value, peel in plan.peels.items()}


def _factors(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {value: scale.exponents for value, scale in plan.scales.items()}


def _prefixes(a: Prefix | None, b: Prefix | None) -> Pair[Sequence[int]] | None:
    if (a.digest if a else None) == (b.digest if b else None):
        return None
    return Pair(a.tokens if a else (), b.tokens if b else ())


def _pairs(a: Mapping[str, T], b: Mapping[str, T], absent: T) -> dict[str, Pair[T]]:
    """The keys whose values differ."""
    pairs = {key: Pair(a.get(key, absent), b.get(key, absent)) for key in dict.fromkeys([*a, *b])}
    return {key: pair for key, pair in pairs.items() if pair.a != pair.b}


def _rows(a: Report | None, b: Report | None) -> list[ComparedRung]:
    """Perplexities of the rungs that both have, if they were measured on the same text."""
    if a is None or b is None or a.text is None or b.text is None or a.text.digest != b.text.digest:
        return []
    pairs = [(one, b.rung(one.id, one.bits)) for one in a.ladder]
    return [
        ComparedRung(one.id, one.bits, Pair(one.perplexity, other.perplexity))
        for one, other in pairs
        if other is not None
    ]
