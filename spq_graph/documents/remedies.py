"""What the user wants of each remedy: the recipe's tables `[remedies.NAME]`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt

from spq_graph.documents.changes import MOST_TOKENS
from spq_graph.terms.errors import UsageError

Wanted = Literal["auto", "always", "never"]
Alpha = Annotated[float, Field(ge=0.0, le=1.0)]
Number = TypeVar("Number", int, float)


def _ascending(numbers: tuple[Number, ...]) -> tuple[Number, ...]:
    return tuple(sorted(set(numbers)))


class PeelSettings(BaseModel):
    """Outlier branches: channels of an activation that leave its INT8 range."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    use: Wanted = Field(
        "auto",
        description="auto: where kept sites alone do not meet the KL budget; always: wherever they narrow a range",
    )
    channels: Annotated[tuple[PositiveInt, ...], AfterValidator(_ascending)] = Field(
        (4, 16, 64, 128),
        min_length=1,
        max_length=8,
        description="how many channels a branch may have; few are tried first",
    )


class SmoothSettings(BaseModel):
    """Smoothing: channels of an activation divided by powers of two, which their weights take."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    use: Wanted = Field(
        "auto",
        description="auto: where neither kept sites nor scales by token meet the KL budget, as far as that helps; "
        "always: wherever something takes the factors, before all else",
    )
    alpha: Annotated[tuple[Alpha, ...], AfterValidator(_ascending)] = Field(
        (0.3, 0.5, 0.65),
        min_length=1,
        max_length=8,
        description="how much of an activation's spread its weights take; each kind of place gets what costs least",
    )


class PrefixSettings(BaseModel):
    """A prefix: tokens that every sequence follows, whose keys and values stand in the graph."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    use: Wanted = Field(
        "never",
        description="auto: without scales by token, where nothing kept misses the KL budget and a prefix saves a fifth "
        "of that; always: in any case; the model then says what it would behind these tokens",
    )
    most: int = Field(3, ge=1, le=MOST_TOKENS, description="how many tokens it may have; one after the other is tried")
    tokens: tuple[NonNegativeInt, ...] = Field(
        (), max_length=MOST_TOKENS, description="token ids, in their order, instead of a search"
    )


class Remedies(BaseModel):
    """Every remedy, by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    peel: PeelSettings = Field(PeelSettings(), description="outlier branches")
    smooth: SmoothSettings = Field(SmoothSettings(), description="smoothing")
    prefix: PrefixSettings = Field(PrefixSettings(), description="a prefix of tokens")


def wished(remedies: Collection[str], without: Collection[str]) -> dict[str, dict[str, Wanted]] | None:
    """What `--remedy NAME` and `--no-remedy NAME` say, as a recipe has it; None where neither was given.

    Raises:
        UsageError: there is no such remedy, or one is wanted and left out.
    """
    wanted: dict[str, Wanted] = {**dict.fromkeys(remedies, "always"), **dict.fromkeys(without, "never")}
    for name in wanted:
        if name not in Remedies.model_fields:
            raise UsageError(
                f"no remedy '{name}'", where="--remedy", remedy=f"one of {', '.join(sorted(Remedies.model_fields))}"
            )
        if name in remedies and name in without:
            raise UsageError(
                f"'{name}' is asked for and left out", where="--remedy, --no-remedy", remedy="give one of the two"
            )
    return {name: {"use": use} for name, use in wanted.items()} or None
