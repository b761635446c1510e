"""What two plans or artifacts have different."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spq_graph import artifact
from spq_graph.inspection import inspect_path
from spq_graph.passes.graph import files_of
from spq_graph.plan import Plan
from spq_graph.report import Report


@dataclass(slots=True)
class _Side:
    """One of the two: what of a plan, a model and a report is there."""

    sites: dict[str, dict[str, Any]]
    plan: Plan | None = None
    report: Report | None = None
    operators: dict[str, int] = field(default_factory=dict)
    bytes: int | None = None


def differences(path_a: str | Path, path_b: str | Path) -> dict[str, Any]:
    """What differs between two plans, OUT folders or .onnx files, in any combination.

    Returns:
        `same_model` (None where a file without a plan does not tell), `changed` sites with precision, reason and ratio
        on both sides, keys `only_a` and `only_b`; fields of the `recipe`, `operators` and `bytes` that differ, and the
        `ladder` rows that both reports have.

    Raises:
        UsageError: a plan or report cannot be read.
        SourceError: a model cannot be read.
    """
    a, b = _side(Path(path_a)), _side(Path(path_b))
    changed = [
        {"key": key, "a": _decision(a.sites[key]), "b": _decision(b.sites[key])}
        for key in a.sites
        if key in b.sites and _differs(a.sites[key], b.sites[key])
    ]
    return {
        "same_model": a.plan.model.digest == b.plan.model.digest if a.plan and b.plan else None,
        "changed": changed,
        "only_a": [key for key in a.sites if key not in b.sites],
        "only_b": [key for key in b.sites if key not in a.sites],
        "recipe": _pairs(*(side.plan.recipe.model_dump(mode="json") if side.plan else {} for side in (a, b))),
        "operators": _pairs(a.operators, b.operators, absent=0) if a.operators and b.operators else {},
        "bytes": _pairs(*({"bytes": side.bytes} if side.bytes is not None else {} for side in (a, b))),
        "ladder": _rows(a.report, b.report),
    }


def _side(path: Path) -> _Side:
    if (path.is_dir() and not (path / artifact.MODEL).is_file()) or path.suffix == ".json":
        plan = Plan.load(path / artifact.PLAN if path.is_dir() else path)
        return _Side(_by_key(plan.to_dict()["sites"]), plan)
    found = inspect_path(path)
    file = artifact.model_file(path)
    side = _Side(_by_key(found["sites"]), operators=found["graph"]["operators"])
    side.bytes = sum(part.stat().st_size for part in files_of(file))
    if path.is_dir() and (path / artifact.PLAN).is_file():
        side.plan = Plan.load(path / artifact.PLAN)
    if path.is_dir() and (path / artifact.REPORT).is_file():
        side.report = Report.load(path / artifact.REPORT)
    return side


def _by_key(sites: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {site["key"]: site for site in sites}


def _decision(site: dict[str, Any]) -> dict[str, Any]:
    return {"precision": site["precision"], "reason": site["reason"], "ratio": site["evidence"].get("ratio")}


def _differs(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """A reason that is not recorded on one side is no difference."""
    both = a["reason"] is not None and b["reason"] is not None
    return bool(a["precision"] != b["precision"] or (both and a["reason"] != b["reason"]))


def _pairs(a: dict[str, Any], b: dict[str, Any], absent: object = None) -> dict[str, dict[str, Any]]:
    """The keys whose values differ; none where one side has nothing at all."""
    if not a or not b:
        return {}
    keys = dict.fromkeys([*a, *b])
    return {k: {"a": a.get(k, absent), "b": b.get(k, absent)} for k in keys if a.get(k, absent) != b.get(k, absent)}


def _rows(a: Report | None, b: Report | None) -> list[dict[str, Any]]:
    """Perplexities of the rungs that both have, if they were measured on the same text."""
    if a is None or b is None or a.text is None or b.text is None or a.text.digest != b.text.digest:
        return []
    known = {(r.name, r.bits, r.seed): r for r in b.ladder}
    pairs = [(r, known[r.name, r.bits, r.seed]) for r in a.ladder if (r.name, r.bits, r.seed) in known]
    return [
        {"name": one.name, "bits": one.bits, "seed": one.seed, "a": one.perplexity, "b": other.perplexity}
        for one, other in pairs
    ]
