"""What looking at a model or comparing two of them finds, as a program gets it and as --json prints it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.outliers import Outliers
from spq_graph.documents.plan import Evidence, Reason, SitePlan
from spq_graph.terms.rows import RowId
from spq_graph.terms.site import OfSite, Site, Unmatched

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class InspectedSite(OfSite):
    """One site of a file.

    Attributes:
        site: as the plan beside the file has it, or else as it was found in the graph.
        precision: as planned, or as found in the file: other tools have precisions that no plan has.
        reason: why, in the file's own words where they are none of ours; None where neither plan nor file says it.
        evidence: what was measured when that was decided, or now where no plan is recorded.
        measured: what was measured now; None where that was not asked for, or the site never ran.
        plan: the decision as it is recorded; None where none is.
    """

    site: Site
    precision: str
    reason: Reason | str | None
    evidence: Evidence = field(default_factory=Evidence)
    measured: Evidence | None = None
    plan: SitePlan | None = None

    @classmethod
    def planned(cls, plan: SitePlan) -> InspectedSite:
        """A site as its plan has it."""
        return cls(plan.site, plan.precision.value, plan.reason, plan.evidence, plan=plan)

    @property
    def reason_name(self) -> str | None:
        """The reason as plain text."""
        return str(self.reason) if self.reason is not None else None

    def to_dict(self) -> dict[str, Any]:
        """An entry of `sites`: as in a plan, with `range` where one is recorded, and `measured` where it was."""
        data: dict[str, Any] = asdict(self.site)
        data |= {"role": self.role.value, "shape": list(self.shape)}
        data |= {"precision": self.precision, "reason": self.reason_name}
        if self.plan is not None:
            data["range"] = list(self.plan.range) if self.plan.range is not None else None
        data["evidence"] = known(self.evidence)
        return data if self.measured is None else data | {"measured": known(self.measured)}


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What a file says of itself.

    Attributes:
        opset: of ONNX; None where the file imports none.
        producer: name and version of what wrote it; empty where it does not say.
        plan: digest of the plan that was applied to it; version: of the program that did.
        operators: how many nodes there are of each type.
        logits: the output that holds logits; None where none does.
        no_logits: what there is instead of them, in words.
    """

    opset: int | None
    producer: str
    plan: str | None
    version: str | None
    operators: Mapping[str, int]
    logits: str | None = None
    no_logits: str = ""


@dataclass(frozen=True, slots=True)
class SeenStretch:
    """Token maxima at the positions from `first` to `last`: the largest one, and a typical one."""

    first: int
    last: int
    max: float
    typical: float


@dataclass(frozen=True, slots=True)
class SeenToken:
    """A token with one of the largest maxima; its text is None without a tokenizer."""

    token: int
    text: str | None
    max: float
    position: int


@dataclass(frozen=True, slots=True)
class SeenProfile:
    """Where in the sequence a site's input is large, and on which tokens."""

    positions: list[SeenStretch]
    tokens: list[SeenToken]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an ONNX file or OUT folder holds.

    Attributes:
        path: as it was named.
        glu_blocks: how many there are.
        sites: those that were asked for.
        unmatched: products that are no sites.
        graph: what the file says of itself.
        measured: the data that it was run on; None where it was not.
        profiles: by site key, where sites were named and ranges are known.
        note: what the graph is that other verbs refuse, and what to pass in its place; None where they take it.
        outliers: on one prompt; None where that was not asked for.
    """

    path: str
    glu_blocks: int
    sites: list[InspectedSite]
    unmatched: list[Unmatched]
    graph: GraphFacts
    measured: CalibrationRef | None = None
    profiles: Mapping[str, SeenProfile] = field(default_factory=dict)
    note: str | None = None
    outliers: Outliers | None = None

    def to_dict(self) -> dict[str, Any]:
        """What `inspect --json` prints."""
        return {
            "path": self.path,
            "glu_blocks": self.glu_blocks,
            "sites": [site.to_dict() for site in self.sites],
            "unmatched": [asdict(one) for one in self.unmatched],
            "graph": asdict(self.graph),
            "measured": self.measured.model_dump(mode="json") if self.measured is not None else None,
            "profiles": {key: asdict(profile) for key, profile in self.profiles.items()},
            "note": self.note,
            "outliers": self.outliers.to_dict() if self.outliers is not None else None,
        }


@dataclass(frozen=True, slots=True)
class Pair(Generic[T]):
    """The two sides of what differs."""

    a: T
    b: T


@dataclass(frozen=True, slots=True)
class Decision:
    """What one side decides for a site; None is what it does not tell."""

    precision: str
    reason: str | None
    ratio: float | None


@dataclass(frozen=True, slots=True)
class ComparedRung:
    """A row that both ladders have, at so many bits, with the perplexity on either side."""

    id: RowId
    bits: int | None
    perplexity: Pair[float]

    def to_dict(self) -> dict[str, Any]:
        """An entry of `ladder`."""
        return {"name": self.id.name, "bits": self.bits, "seed": self.id.seed, **asdict(self.perplexity)}


@dataclass(frozen=True, slots=True)
class Difference:
    """What two plans or artifacts have different.

    Attributes:
        same_model: whether both are of one model; None where a file without a plan does not tell.
        changed: sites that both have, by key.
        only_a, only_b: keys of sites that one side has.
        branches: channels of outlier branches, by activation, that one side alone has or that differ.
        factors: exponents of the factors of channels, by activation, that one side alone has or that differ.
        prefix: token ids that every sequence follows, where they differ or their keys and values do.
        recipe: fields that differ, where both have a plan.
        operators: types whose counts differ, where both have a graph.
        bytes: of the files, where both have some and they differ.
        ladder: rows that both reports have, where they were measured on one text.
    """

    same_model: bool | None
    changed: Mapping[str, Pair[Decision]]
    only_a: Sequence[str]
    only_b: Sequence[str]
    branches: Mapping[str, Pair[Sequence[int]]]
    factors: Mapping[str, Pair[Sequence[int]]]
    prefix: Pair[Sequence[int]] | None
    recipe: Mapping[str, Pair[Any]]
    operators: Mapping[str, Pair[int]]
    bytes: Pair[int] | None
    ladder: Sequence[ComparedRung]

    def to_dict(self) -> dict[str, Any]:
        """What `diff --json` prints."""
        return {
            "same_model": self.same_model,
            "changed": [{"key": key, **asdict(pair)} for key, pair in self.changed.items()],
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "branches": [{"value": value, **asdict(pair)} for value, pair in self.branches.items()],
            "factors": [{"value": value, **asdict(pair)} for value, pair in self.factors.items()],
            "prefix": {"tokens": asdict(self.prefix)} if self.prefix is not None else {},
            "recipe": {name: asdict(pair) for name, pair in self.recipe.items()},
            "operators": {name: asdict(pair) for name, pair in self.operators.items()},
            "bytes": {"bytes": asdict(self.bytes)} if self.bytes is not None else {},
            "ladder": [rung.to_dict() for rung in self.ladder],
        }


@dataclass(frozen=True, slots=True)
class Forecast:
    """What `quantize` would do.

    Attributes:
        source: as it was named.
        glu_blocks: how many there are.
        sites: those that count in shares.
        kept_at_most: the cap on kept ones; 0 where they are chosen by their ratio.
        bits: every width that would be decided at.
        source_bytes: of the model's files.
        bytes_everywhere, bytes_at_most: of the artifact with no site kept, and with the largest ones up to the cap.
        by_step: seconds of each step; `ladder` is 0 without one.
        unmatched: products that are no sites.
        based_on: the files that it was read from, by name.
        unchecked: what else a run may be refused for, in words.
    """

    source: str
    glu_blocks: int
    sites: int
    kept_at_most: int
    bits: tuple[int, ...]
    source_bytes: int
    bytes_everywhere: int
    bytes_at_most: int
    by_step: dict[str, float]
    unmatched: int
    based_on: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of all steps together."""
        return sum(self.by_step.values())

    @property
    def ladder_seconds(self) -> float:
        """Of the ladder; 0 without one."""
        return self.by_step["ladder"]

    def to_dict(self) -> dict[str, Any]:
        """What `quantize --dry-run --json` prints: sizes in MB (10**6 bytes), times in seconds."""
        return {
            "source": self.source,
            "glu_blocks": self.glu_blocks,
            "sites": self.sites,
            "kept_at_most": self.kept_at_most,
            "bits": list(self.bits),
            "source_mb": self.source_bytes / 1e6,
            "mb_quantized_everywhere": self.bytes_everywhere / 1e6,
            "mb_at_most": self.bytes_at_most / 1e6,
            "expected_time": round(self.seconds, 1),
            "of_which_ladder": round(self.ladder_seconds, 1),
            "seconds": {name: round(seconds, 2) for name, seconds in self.by_step.items()},
            "unmatched": self.unmatched,
            "based_on": list(self.based_on),
            "unchecked": list(self.unchecked),
        }


def known(evidence: Evidence) -> dict[str, Any]:
    """What was measured, as JSON has it; what was not is left out."""
    return evidence.model_dump(mode="json", exclude_none=True)
