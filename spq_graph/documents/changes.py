"""The edits that remedies are made of, as data: each can be written into a graph, checked there, and taken back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, FiniteFloat, NonNegativeInt

from spq_graph.documents.strict import Strict


def _ascending(channels: tuple[int, ...]) -> tuple[int, ...]:
    if list(channels) != sorted(set(channels)):
        raise ValueError("channels stand in ascending order, each once")
    return channels


class Peel(Strict):
    """Outlier channels of an activation: the INT8 range covers the others, and what exceeds it is added in float32.

    With Q the quantizer of [low, high], which saturates, and c the channels:
    Y = Q(x) W_int8 + (x_c - clip(x_c, low, high)) W[c, :]. A static relative of the decomposition in LLM.int8()
    (arXiv 2208.07339, section 3.2), in which the channels are found at run time and leave the integer product.
    """

    kind: Literal["peel"] = Field("peel", description="what kind of change it is")
    value: str = Field(description="the activation value; all integer sites that read it are changed")
    channels: Annotated[tuple[NonNegativeInt, ...], AfterValidator(_ascending)] = Field(
        min_length=1, description="which channels have the branch, along the last axis"
    )
    low: FiniteFloat = Field(description="smallest activation of the other channels")
    high: FiniteFloat = Field(description="largest activation of the other channels")
