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
    """Outlier channels of an activation: they leave the integer product, whose range covers the others.

    With c the channels, Q the quantizer of the others' range, and W_int8 the codes of the weight with zeros in the rows
    c: Y = Q(x) W_int8 + x_c W[c, :]. The decomposition of LLM.int8() (arXiv 2208.07339, equation 8) with static
    channels. Neither the activations nor the weights of these channels are rounded to integers.
    """

    kind: Literal["peel"] = Field("peel", description="what kind of change it is")
    value: str = Field(description="the activation value; all sites change that read it in integers by one scale")
    channels: Annotated[tuple[NonNegativeInt, ...], AfterValidator(_ascending)] = Field(
        min_length=1, description="which channels have the branch, along the last axis"
    )
    low: FiniteFloat = Field(description="smallest activation of the other channels")
    high: FiniteFloat = Field(description="largest activation of the other channels")
