"""What the user wants of each remedy: the recipe's tables `[remedies.NAME]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt

Wanted = Literal["auto", "always", "never"]


def _ascending(counts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(counts)))


class PeelSettings(BaseModel):
    """Outlier branches: channels of an activation that leave its INT8 range."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    use: Wanted = Field(
        "auto",
        description="auto: where kept sites alone do not meet the KL budget; always: wherever they narrow a range",
    )
    channels: Annotated[tuple[PositiveInt, ...], AfterValidator(_ascending)] = Field(
        (4, 16, 64), min_length=1, max_length=8, description="how many channels a branch may have; few are tried first"
    )


class Remedies(BaseModel):
    """Every remedy, by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    peel: PeelSettings = Field(PeelSettings(), description="outlier branches")
