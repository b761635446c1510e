"""The arrays of a plan's treatments, in a file beside it: plan.safetensors beside plan.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from spq_graph.documents.arrays import Arrays
from spq_graph.documents.changes import Change, Prefix
from spq_graph.documents.content import content_of
from spq_graph.documents.treatment import Treatment
from spq_graph.terms.errors import UsageError

_TOGETHER = "keep it beside its plan.json as both were written, or make the plan again"


def arrays_beside(plan: Path, treatments: Iterable[Treatment]) -> dict[Path, bytes]:
    """What is to be written beside a plan: nothing where no treatment has arrays."""
    prefixes = (change for treatment in treatments for change in treatment.changes if isinstance(change, Prefix))
    return {plan.with_suffix(".safetensors"): prefix.arrays.content for prefix in prefixes}


def with_arrays(plan: Path, treatments: Iterable[Treatment]) -> list[Treatment]:
    """Treatments with the arrays that lie beside their plan.

    Raises:
        UsageError: they are not there, or not those that the plan was written with.
    """
    path = plan.with_suffix(".safetensors")

    def whole(change: Change) -> Change:
        if not isinstance(change, Prefix):
            return change
        try:
            return change.holding(Arrays(content_of(path)))
        except OSError as cause:
            raise UsageError(
                f"the keys and values of the plan's prefix cannot be read: {cause.strerror}",
                where=str(path),
                remedy=_TOGETHER,
            ) from cause
        except ValueError as cause:
            raise UsageError(
                f"these are not the keys and values of the plan's prefix ({cause})", where=str(path), remedy=_TOGETHER
            ) from cause

    return [t.model_copy(update={"changes": tuple(map(whole, t.changes))}) for t in treatments]
