"""What was decided, for every site, with the reason and the evidence. Same inputs, same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import (
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from spq_graph.documents.calibration_ref import CalibrationRef
from spq_graph.documents.changes import Peel, Prefix, Scale
from spq_graph.documents.content import content_of
from spq_graph.documents.json_text import json_text
from spq_graph.documents.model_ref import ModelRef
from spq_graph.documents.plan_arrays import arrays_beside, with_arrays
from spq_graph.documents.plan_file import refuse_senseless
from spq_graph.documents.recipe import Recipe
from spq_graph.documents.search import Search
from spq_graph.documents.staging import written
from spq_graph.documents.strict import Strict, first_problem
from spq_graph.documents.tables import html_table, to_frame
from spq_graph.documents.treatment import Treatment, changes_of
from spq_graph.terms.errors import UsageError
from spq_graph.terms.form import Form
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import OfSite, Role, Site, Unmatched

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA: Literal["spq-graph/plan/1"] = "spq-graph/plan/1"
SHOWN_IN_NOTEBOOKS = 12


class Reason(StrEnum):
    """Why a site has its precision."""

    SPIKE = "spike"  # kept: its spikes cost more than it saves
    BUDGET = "budget"  # a candidate that is quantized all the same: the rule needed no more, or the cap was reached
    OVERRIDE = "override"  # by hand
    DEFAULT = "default"  # nothing speaks for anything else
    UNSUPPORTED = "unsupported_on_target"  # the target cannot run what was planned, or nothing was measured
    ASKED = "asked"  # a head or an embedding in 8-bit weights, since the recipe says so
    WITHIN_BUDGET = "within_budget"  # a head or an embedding in 8-bit weights: the measured cost leaves the budget met
    OVER_BUDGET = "over_budget"  # a head or an embedding that stays as it is: its measured cost is more than is left
    TOO_FEW_TOKENS = "too_few_tokens"  # an expert that calibration routed too few tokens to: its range is not trusted


class Evidence(Strict):
    """What was measured at a site's input, and what followed from it. Absent where nothing was measured."""

    ratio: float | None = Field(None, description="max/median of the token maxima, pooled")
    sequence_ratio: float | None = Field(None, description="mean over sequences of max/median (QFeM)")
    max: float | None = Field(None, description="largest token maximum")
    median: float | None = Field(None, description="median of the token maxima")
    token: int | None = Field(None, description="token id at the maximum")
    token_text: str | None = Field(None, description="that token, decoded")
    position: int | None = Field(None, description="its position in the sequence")
    kl: float | None = Field(
        None,
        description="KL(FP || this site alone quantized), nats a token; beside branches and factors as there were then",
    )
    kl_stderr: float | None = Field(None, description="its standard error, clustered by window")
    rank: int | None = Field(None, description="place among the candidates, 0 the costliest")
    formats: dict[str, float] | None = Field(None, description="KL of keeping this site alone in a format, by format")
    threshold: float | None = Field(None, description="ratio above which a site is a candidate, or kept")
    note: str | None = Field(None, description="the reason in words")

    @field_validator("ratio", "sequence_ratio", "max", "median", "kl", "kl_stderr", mode="after")
    @classmethod
    def _six_digits(cls, value: float | None) -> float | None:
        return None if value is None else float(f"{value:.6g}")


_SITE = TypeAdapter(Site)
_ASIDE = frozenset({Reason.DEFAULT, Reason.ASKED, Reason.WITHIN_BUDGET, Reason.OVER_BUDGET, Reason.UNSUPPORTED})
# What `_SITE` reads of an entry; a "site" is no field of an entry as JSON has it, and is refused with it.
_IN_ENTRY = frozenset({"site", *(field.name for field in fields(Site))})


class SitePlan(OfSite, Strict):
    """The decision for one site."""

    site: Site = Field(description="what it is for; in JSON its fields stand beside the decision")
    precision: Precision = Field(description="the arithmetic that it gets")
    reason: Reason = Field(description="why")
    range: tuple[float, float] | None = Field(None, description="smallest and largest activation, for its quantizer")
    evidence: Evidence = Field(Evidence(), description="what was measured")

    @model_validator(mode="before")
    @classmethod
    def _gather_site(cls, given: Any) -> Any:
        """Take what identifies the site out of an entry as JSON has it."""
        if not isinstance(given, dict) or isinstance(given.get("site"), Site):
            return given
        site = _SITE.validate_python({name: value for name, value in given.items() if name in _IN_ENTRY})
        return {"site": site} | {name: value for name, value in given.items() if name not in _IN_ENTRY}

    @model_serializer(mode="wrap")
    def _lay_out_site(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        return {**data.pop("site"), **data}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        fields_only = cast(CoreSchema, {key: value for key, value in core.items() if key != "serialization"})
        entry = handler.resolve_ref_schema(handler(fields_only))
        site = handler.resolve_ref_schema(entry["properties"].pop("site"))
        entry["properties"] = site["properties"] | entry["properties"]
        entry["required"] = site["required"] + [name for name in entry["required"] if name != "site"]
        return entry

    @property
    def kept(self) -> bool:
        """Whether it is kept in high precision on purpose; what stays as it is by default is not."""
        return self.precision.bits is None and self.reason is not Reason.DEFAULT and not self.aside

    @property
    def aside(self) -> bool:
        """Whether it does not count in shares: an embedding, and a head or router that no rule for sites decided."""
        return self.role is Role.EMBEDDING or (self.role.left_alone and self.reason in _ASIDE)

    @property
    def untouched(self) -> bool:
        """Whether it stays as the graph has it by default, so that nothing is written."""
        return self.reason is Reason.DEFAULT and self.precision.row.weights.width > 8

    @property
    def largest(self) -> float | None:
        """Largest absolute activation; None where no range was measured."""
        return max(abs(edge) for edge in self.range) if self.range is not None else None


class Plan(Strict):
    """What was decided for one model."""

    schema_: Literal["spq-graph/plan/1"] = Field(SCHEMA, alias="schema")
    model: ModelRef = Field(description="the model that the plan is for")
    recipe: Recipe = Field(description="what was wanted")
    calibration: CalibrationRef = Field(description="the data that the ranges come from")
    search: Search = Field(description="how the rule came to its result")
    sites: list[SitePlan] = Field(description="one entry for each site, in the graph's order; embeddings come last")
    treatments: list[Treatment] = Field([], description="remedies at places, applied or refused, with the reason")
    budget_met: bool = Field(description="whether the KL budget holds with what may be kept")
    unmatched: list[Unmatched] = Field([], description="products that became no site")

    model_config = ConfigDict(populate_by_name=True)

    @property
    def integer_sites(self) -> list[SitePlan]:
        """Sites that are to run as integer kernels."""
        return [s for s in self.sites if s.precision.bits is not None]

    def in_form(self, form: Form) -> list[SitePlan]:
        """Sites whose product becomes this on the plan's target."""
        profile, peels = self.recipe.profile, self.peels
        sites = [s for s in self.sites if profile.allows(s.precision)]
        return [s for s in sites if profile.form_at(s.role, s.precision, branch=s.input in peels) is form]

    @property
    def kept(self) -> list[SitePlan]:
        """Sites kept in high precision on purpose; what stays as it is by default does not count."""
        return [s for s in self.sites if s.kept]

    @property
    def usual(self) -> Precision:
        """What a site gets that nothing else is said of."""
        return Precision.W8A8_TOKEN if self.search.scales == "by_token" else Precision.integer(self.recipe.bits)

    @property
    def counted(self) -> list[SitePlan]:
        """Sites that count in shares: all but embeddings, and heads and routers by default."""
        return [s for s in self.sites if not s.aside]

    @property
    def peels(self) -> dict[str, Peel]:
        """The outlier branches that are applied, by the activation value that they are of."""
        return changes_of(self.treatments, Peel)

    @property
    def scales(self) -> dict[str, Scale]:
        """The factors of channels that are applied, by the activation value that they are of."""
        return changes_of(self.treatments, Scale)

    @property
    def prefix(self) -> Prefix | None:
        """The tokens that every sequence follows; None where there are none."""
        return next((c for t in self.treatments if t.applied for c in t.changes if isinstance(c, Prefix)), None)

    def with_precisions(self, precision_of: Callable[[SitePlan], Precision], **recipe: object) -> Plan:
        """The same plan with other precisions, and with other fields of its recipe; treatments stay."""
        sites = [s.model_copy(update={"precision": precision_of(s)}) for s in self.sites]
        return self.model_copy(update={"sites": sites, "recipe": self.recipe.model_copy(update=recipe)})

    def with_treatments(self, treatments: Iterable[Treatment]) -> Plan:
        """The same plan with these treatments and no other."""
        return self.model_copy(update={"treatments": list(treatments)})

    def to_json(self) -> str:
        """Deterministic JSON."""
        return json_text(self.to_dict(), "plan.json") + "\n"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data; evidence that was not measured is left out."""
        data = self.model_dump(mode="json", by_alias=True)
        for site in data["sites"]:
            site["evidence"] = {k: v for k, v in site["evidence"].items() if v is not None}
        return data

    def to_pandas(self) -> DataFrame:
        """One row for each site, by key, with its decision and its evidence.

        Raises:
            UsageError: pandas is not installed.
        """
        rows = []
        for site in self.sites:
            row = site.model_dump(mode="json", exclude={"range", "evidence"})
            rows_of_weight, columns = row.pop("shape")
            low, high = site.range or (None, None)
            row |= {"K": rows_of_weight, "N": columns, "low": low, "high": high}
            rows.append(row | site.evidence.model_dump(mode="json"))
        return to_frame(rows, "key")

    def _repr_html_(self) -> str:
        kept = {site.key for site in self.kept}
        shown = sorted(self.sites, key=lambda s: (s.key not in kept, -(s.evidence.ratio or 0.0)))[:SHOWN_IN_NOTEBOOKS]
        caption = (
            f"Plan for {self.model.origin}: {len(kept)} of {len(self.counted)} sites kept, "
            f"budget {'met' if self.budget_met else 'not met'}; {len(shown)} of {len(self.sites)} sites shown"
        )
        columns = ("site", "precision", "reason", "ratio", "max", "median", "token", "position", "KL alone")
        rows = [
            (s.key, s.precision, s.reason, e.ratio, e.max, e.median, e.token_text or e.token, e.position, e.kl)
            for s in shown
            for e in (s.evidence,)
        ]
        return html_table(caption, columns, rows)

    @property
    def digest(self) -> str:
        """Digest of the plan's JSON."""
        return "sha256:" + hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, and beside it the arrays of its treatments, where it has some."""
        written({Path(path): self.to_json().encode(), **arrays_beside(Path(path), self.treatments)})

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan.

        Raises:
            UsageError: the file is missing, not JSON, or not a plan; or the arrays beside it are not those of the plan.
        """
        try:
            text = content_of(Path(path))
            refuse_senseless(text)
            made = cls.model_validate_json(text)
        except OSError as cause:
            raise UsageError(
                f"the plan cannot be read: {cause.strerror}",
                where=str(path),
                remedy="name a file that `spq-graph plan` wrote, or the plan.json of an OUT",
            ) from cause
        except ValueError as cause:
            raise UsageError(
                f"this is not a valid plan ({first_problem(cause)})",
                where=str(path),
                remedy="write one with `spq-graph plan`",
            ) from cause
        return made.with_treatments(with_arrays(Path(path), made.treatments))
