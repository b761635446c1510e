"""Ready or not, and what a report advises."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, model_validator

from spq_graph.documents.named import Named
from spq_graph.documents.strict import Strict


class Standing(StrEnum):
    """Whether a result may be used, as far as that is known."""

    READY = "ready"
    NOT_READY = "not_ready"
    NOT_MEASURED = "not_measured"


class Advice(Strict):
    """Something that is left to try, and changes what comes out.

    Attributes:
        say: what happens then, in words.
        recipe: the fields of the recipe that do it; null is what the field is without being given.
    """

    say: str
    recipe: dict[str, Any]


class Recommended(Named):
    """The row of the ladder that serves the use that was asked for best.

    Of those within the limit of loss it is the fastest where speed was measured, and otherwise the smallest.

    Attributes:
        bits: of the row.
        loss: its perplexity over that of FP32, as a share.
        bytes: of its weights.
        by: what decided between it and others.
        in_out: whether it is what OUT holds.
        recipe: fields of the recipe that make it, where OUT does not hold it.
    """

    bits: int | None
    loss: float
    bytes: int
    by: Literal["speed", "size"]
    in_out: bool
    recipe: dict[str, Any] = Field({})


class Verdict(Strict):
    """Ready or not, and why.

    Attributes:
        ready: whether accuracy was measured on a text and is within the limit.
        status: the same, where "not" is told apart from "not known".
        summary: in a sentence.
        warnings: what speaks against it.
        advice: what is left to try.
        recommended: the row that serves best; None where none is within the limit, or nothing was measured.
    """

    ready: bool
    status: Standing
    summary: str
    warnings: list[str] = Field([])
    advice: list[Advice] = Field([])
    recommended: Recommended | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_the_first_edition(cls, data: Any) -> Any:
        """Reports that have no status knew ready and not ready only."""
        if isinstance(data, dict) and "ready" in data and "status" not in data:
            return data | {"status": Standing.READY if data["ready"] else Standing.NOT_READY}
        return data
