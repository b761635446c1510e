"""One remedy at one place: what it changes there, whether it is applied, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Self, TypeVar

from pydantic import Field, model_validator

from spq_graph.documents.changes import AtValue, Change, Peel, Prefix, Scale
from spq_graph.documents.strict import Strict
from spq_graph.terms.site import Site

OfKind = TypeVar("OfKind", Peel, Scale)


class Cause(StrEnum):
    """Why a treatment is applied, or is not."""

    BUDGET = "budget"  # applied: without it the KL budget was not met
    OVERRIDE = "override"  # applied by hand
    TRIED = "tried"  # applied, to be measured
    NOT_NEEDED = "not_needed"  # refused: what remains costs too little
    IMPOSSIBLE = "impossible"  # refused: the graph has no place for it


# The remedy that each kind of change is made by.
REMEDIES: Mapping[str, str] = {"peel": "peel", "scale": "smooth", "prefix": "prefix"}


class Treatment(Strict):
    """A decision of the second kind: a remedy at a place."""

    remedy: str = Field(description="its name, as recipes call it")
    sites: tuple[str, ...] = Field(min_length=1, description="keys of the sites that it is for")
    applied: bool = Field(description="whether it is in OUT")
    reason: Cause = Field(description="why it is, or is not")
    changes: tuple[Change, ...] = Field(description="the edits that it is made of; none where there can be none")
    narrower: float | None = Field(
        None, description="width of the range over what is left of it: of the other channels, or once it is smoothed"
    )
    note: str | None = Field(None, description="the reason in words")

    @model_validator(mode="after")
    def _changes_something(self) -> Self:
        if self.applied and not self.changes:
            raise ValueError("what is applied changes something")
        return self


def changes_of(treatments: Iterable[Treatment], kind: type[OfKind]) -> dict[str, OfKind]:
    """The changes of a kind that are applied, by the activation value that they are of."""
    return {change.value: change for t in treatments if t.applied for change in t.changes if isinstance(change, kind)}


def tried(sites: Collection[Site], *changes: Mapping[str, AtValue]) -> list[Treatment]:
    """Treatments that are only to be measured, by activation value, at these sites; of each mapping in its order."""
    readers: dict[str, list[str]] = {}
    for site in sites:
        readers.setdefault(site.input, []).append(site.key)
    return [
        Treatment(
            remedy=REMEDIES[change.kind],
            sites=tuple(readers[value]),
            applied=True,
            reason=Cause.TRIED,
            changes=(change,),
        )
        for some in changes
        for value, change in some.items()
        if value in readers
    ]


def of_prefix(sites: Collection[Site], prefix: Prefix, cause: Cause, note: str | None = None) -> Treatment:
    """What a plan says of a prefix, which is for every site."""
    keys = tuple(site.key for site in sites)
    return Treatment(remedy="prefix", sites=keys, applied=True, reason=cause, changes=(prefix,), note=note)
