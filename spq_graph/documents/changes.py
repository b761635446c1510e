"""The edits that remedies are made of, as data: each can be written into a graph, checked there, and taken back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, FiniteFloat, NonNegativeInt, PositiveInt, PrivateAttr

from spq_graph.documents.arrays import Arrays, Float32
from spq_graph.documents.strict import Strict

# Factors are no further from 1 than two to this: what is left of an activation's range beyond it is for a branch.
MOST_EXPONENT = 8
# Each token of a prefix takes room in the cache of every sequence, and few hold what spikes.
MOST_TOKENS = 16


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


class Scale(Strict):
    """Channels of an activation by powers of two: folded into what makes it, and inversely into what reads it.

    With e the exponents, the tensor that makes the activation x by channel is multiplied by 2^-e along its axis, and
    row c of every weight W that reads x by 2^e_c: (x_c 2^-e_c) (2^e_c W[c, :]) is to the bit x_c W[c, :], as long as
    no number leaves the normal ones of float32. SmoothQuant (arXiv 2211.10438, equation 3) with such factors alone.
    """

    kind: Literal["scale"] = Field("scale", description="what kind of change it is")
    value: str = Field(description="the activation value; all sites read it so, in whatever precision")
    tensor: str = Field(
        description="the constant that makes it by channel: a norm's weight, or an up or value projection's, whose "
        "bias is scaled with it"
    )
    axis: NonNegativeInt = Field(description="of that constant, along which the channels lie")
    exponents: tuple[Annotated[int, Field(ge=-MOST_EXPONENT, le=MOST_EXPONENT)], ...] = Field(
        min_length=1, description="by channel, e: the activation is divided by 2^e, and the rows are multiplied by it"
    )
    heads: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="behind attention, heads of the query and of the values: those of the query that share one of the "
        "values have the same factors, which the constant has once; null elsewhere",
    )
    low: FiniteFloat = Field(description="smallest activation once it is divided")
    high: FiniteFloat = Field(description="largest activation once it is divided")
    peeled: tuple[FiniteFloat, FiniteFloat] | None = Field(
        None,
        description="beside an outlier branch: smallest and largest activation of the other channels as they were, for "
        "the same branch without this change; null where there is none",
    )

    @property
    def inverse(self) -> Scale:
        """What takes it back, in a graph: the range is not asked for there."""
        return self.model_copy(update={"exponents": tuple(-e for e in self.exponents)})


class Prefix(Strict):
    """Tokens that every sequence follows, of which nothing is left to compute: their keys and values are constants.

    What attends to them is no longer among what is quantized, and neither is what spikes at them: QFeP (arXiv
    2405.14428, section 4), CushionCache (arXiv 2406.12016), PrefixQuant (arXiv 2410.05265). The model computes what it
    would behind these tokens: the source's logits are others.
    """

    kind: Literal["prefix"] = Field("prefix", description="what kind of change it is")
    tokens: tuple[NonNegativeInt, ...] = Field(
        min_length=1, max_length=MOST_TOKENS, description="ids, in their order, from the beginning of every sequence"
    )
    digest: str = Field(
        description="of plan.safetensors, which holds their keys and values, float32 [1, heads, tokens, width], by the "
        "input of the cache that they stand in front of"
    )
    _arrays: Arrays | None = PrivateAttr(None)

    @classmethod
    def of(cls, tokens: tuple[int, ...], caches: Mapping[str, Float32]) -> Prefix:
        """A prefix with its keys and values.

        Args:
            tokens: ids.
            caches: float32 [1, heads, tokens, width], by input of the cache.
        """
        arrays = Arrays.of(caches)
        return cls(tokens=tokens, digest=arrays.digest).holding(arrays)

    def holding(self, arrays: Arrays) -> Prefix:
        """The same prefix with its keys and values at hand.

        Raises:
            ValueError: they are not those that it was made with, or not of its tokens.
        """
        if arrays.digest != self.digest:
            raise ValueError("it is not the file that was written with the plan, or was damaged since")
        for name, array in arrays.read().items():
            if array.ndim != 4 or (array.shape[0], array.shape[2]) != (1, len(self.tokens)):
                raise ValueError(f"{name} is {list(array.shape)}, not [1, heads, {len(self.tokens)}, width]")
        made = self.model_copy()
        made._arrays = arrays
        return made

    @property
    def arrays(self) -> Arrays:
        """Its keys and values.

        Raises:
            LookupError: the plan was not read from a file, or made with them: an error of the program.
        """
        if self._arrays is None:
            raise LookupError("this prefix was made without its keys and values")
        return self._arrays


Change: TypeAlias = Annotated[Peel | Scale | Prefix, Field(discriminator="kind")]
AtValue: TypeAlias = Peel | Scale
"""A change of one activation value."""
