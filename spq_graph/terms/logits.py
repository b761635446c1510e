"""What a graph says of the token that comes next, if it does."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Given(StrEnum):
    """For which of its tokens a graph gives logits."""

    EVERY = "every_token"
    LAST = "last_token"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Logits:
    """Where a graph gives logits.

    Attributes:
        output: the output that holds them; None where the graph gives none.
        vocabulary: how many tokens the graph knows; None where it does not tell.
        instead: what its outputs are where none of them holds logits, in words.
    """

    output: str | None
    vocabulary: int | None = None
    instead: str = ""

    @property
    def words(self) -> str:
        """That there are none, and what there is; empty where there are some."""
        return "" if self.output is not None else f"the graph gives no logits: {self.instead}"
