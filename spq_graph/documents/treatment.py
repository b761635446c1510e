"""One remedy at one place: what it changes there, whether it is applied, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

from pydantic import Field

from spq_graph.documents.changes import Peel
from spq_graph.documents.strict import Strict
from spq_graph.terms.site import Site


class Cause(StrEnum):
    """Why a treatment is applied, or is not."""

    BUDGET = "budget"  # applied: without it the KL budget was not met
    OVERRIDE = "override"  # applied by hand
    TRIED = "tried"  # applied, to be measured
    NOT_NEEDED = "not_needed"  # refused: what remains costs too little


class Treatment(Strict):
    """A decision of the second kind: a remedy at a place."""

    remedy: str = Field(description="its name, as recipes call it")
    sites: tuple[str, ...] = Field(min_length=1, description="keys of the sites that it is for")
    applied: bool = Field(description="whether it is in OUT")
    reason: Cause = Field(description="why it is, or is not")
    changes: tuple[Peel, ...] = Field(min_length=1, description="the edits that it is made of")
    narrower: float | None = Field(None, description="`peel`: width of the range over that of the other channels'")
    note: str | None = Field(None, description="the reason in words")


def tried(sites: Collection[Site], peels: Mapping[str, Peel]) -> list[Treatment]:
    """Outlier branches that are only to be measured, by activation value, at these sites."""
    readers: dict[str, list[str]] = {}
    for site in sites:
        readers.setdefault(site.input, []).append(site.key)
    return [
        Treatment(remedy=peel.kind, sites=tuple(readers[value]), applied=True, reason=Cause.TRIED, changes=(peel,))
        for value, peel in peels.items()
        if value in readers
    ]
