"""The arithmetic that a site can have: a table, which recipe, help, targets, doctor, words and proof read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from spq_graph.terms.kernels import INTEGER_KERNELS, WEIGHT_KERNELS


class Precision(StrEnum):
    """The arithmetic of one Site."""

    INT8 = "int8"
    INT7_IN_8 = "int7_in_8"
    INT6_IN_8 = "int6_in_8"
    INT5_IN_8 = "int5_in_8"
    INT4_IN_8 = "int4_in_8"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    W8A8_TOKEN = "w8a8_token"
    W8A8_BLOCK = "w8a8_block"
    W8A8_BLOCK32 = "w8a8_block32"
    W8A16 = "w8a16"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    W8FP8A16 = "w8fp8a16"

    @property
    def row(self) -> Row:
        """All that is said of it whatever the target."""
        return TABLE[self]

    @property
    def bits(self) -> int | None:
        """Bits of weights and activations for the integer precisions, None for the rest."""
        return self.row.grid

    @property
    def is_fp8(self) -> bool:
        """Whether weights are held in FP8."""
        return self.row.weights is Format.FP8_E4M3

    @property
    def takes_branch(self) -> bool:
        """Whether one scale serves all channels of an activation, so that it helps to take outlier channels out."""
        return self.row.grid is not None or self.row.by_token

    @property
    def needs_range(self) -> bool:
        """Whether activations are quantized with a static scale, which takes a calibrated range."""
        return self.row.activations is not None and not (self.row.by_block or self.row.by_token)

    @classmethod
    def integer(cls, bits: int) -> Precision:
        """The integer precision of so many bits."""
        return next(p for p in cls if p.bits == bits)

    @classmethod
    def _missing_(cls, value: object) -> Precision | None:
        return _FORMERLY.get(str(value))


class Format(StrEnum):
    """What numbers are held in."""

    INT8 = "int8"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    FP16 = "fp16"
    BF16 = "bf16"
    FP32 = "fp32"

    @property
    def width(self) -> int:
        """Bits that a number takes."""
        return {Format.FP16: 16, Format.BF16: 16, Format.FP32: 32}.get(self, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is said of a precision whatever the target; what it becomes on one is said there.

    Attributes:
        words: what it means, for people.
        weights: what they are held in.
        activations: what they are rounded to; None where they stay as they are, or the target decides.
        by_block: whether a scale serves a block of K: of weights, and of each token's activations as the product goes.
        by_token: whether each token's activations have a scale and a zero point of their own, as the product goes.
        block: how much of K; None for the largest of 128, 64 and 32 that divides it.
        grid: bits of the integers that weights and activations are rounded to; None for the other precisions.
        kernels: a product ran as planned if it ran as one of these; empty where names of kernels do not tell.
        probed: whether `doctor` tries it; other rows stand for those that it does not.
        nearest: what a target that cannot run it takes instead, the nearest first; half precision comes after them.
        formerly: its name in files of the first edition, where that was another.
    """

    words: str
    weights: Format
    activations: Format | None = None
    by_block: bool = False
    by_token: bool = False
    block: int | None = None
    grid: int | None = None
    kernels: frozenset[str] = frozenset()
    probed: bool = True
    nearest: tuple[Precision, ...] = ()
    formerly: str | None = None


def _grid(bits: int) -> Row:
    """Integer weights and activations of so many bits, each in a container of eight."""
    return Row(
        words=f"{bits}-bit integer weights and activations{'' if bits == 8 else ', held in 8 bits'}",
        weights=Format.INT8,
        activations=Format.INT8,
        grid=bits,
        kernels=INTEGER_KERNELS,
        probed=bits == 8,
        formerly=None if bits == 8 else f"int{bits}",
    )


TABLE: Mapping[Precision, Row] = MappingProxyType(
    {
        Precision.INT8: _grid(8),
        Precision.INT7_IN_8: _grid(7),
        Precision.INT6_IN_8: _grid(6),
        Precision.INT5_IN_8: _grid(5),
        Precision.INT4_IN_8: _grid(4),
        Precision.FP32: Row(words="32-bit floating point", weights=Format.FP32),
        Precision.FP16: Row(words="16-bit floating point", weights=Format.FP16),
        Precision.BF16: Row(words="16-bit bfloat", weights=Format.BF16),
        Precision.W8A8_TOKEN: Row(
            words="8-bit integer weights by output channel, activations rounded to 8-bit integers by token as the "
            "product goes",
            weights=Format.INT8,
            activations=Format.INT8,
            by_token=True,
            kernels=INTEGER_KERNELS,
            nearest=(Precision.W8A8_BLOCK, Precision.W8A16),
        ),
        Precision.W8A8_BLOCK: Row(
            words="8-bit integer weights in blocks, activations rounded to 8-bit integers by block as the product goes",
            weights=Format.INT8,
            activations=Format.INT8,
            by_block=True,
            kernels=WEIGHT_KERNELS,
            nearest=(Precision.W8A16,),
        ),
        Precision.W8A8_BLOCK32: Row(
            words="as w8a8_block, in blocks of 32: activations are rounded finer, at less speed",
            weights=Format.INT8,
            activations=Format.INT8,
            by_block=True,
            block=32,
            kernels=WEIGHT_KERNELS,
            probed=False,
            nearest=(Precision.W8A8_BLOCK, Precision.W8A16),
        ),
        Precision.W8A16: Row(
            words="8-bit integer weights in blocks, activations as they are",
            weights=Format.INT8,
            by_block=True,
            kernels=WEIGHT_KERNELS,
            nearest=(Precision.W8A8_BLOCK,),
        ),
        Precision.FP8_E4M3: Row(
            words="weights and activations in FP8 E4M3", weights=Format.FP8_E4M3, activations=Format.FP8_E4M3
        ),
        Precision.FP8_E5M2: Row(
            words="weights in FP8 E4M3, activations in FP8 E5M2", weights=Format.FP8_E4M3, activations=Format.FP8_E5M2
        ),
        Precision.W8FP8A16: Row(words="FP8 weights, activations as they are", weights=Format.FP8_E4M3),
    }
)
# As a list for people has them: those with the fewest bits to store first.
SMALLEST_FIRST = tuple(sorted(TABLE, key=lambda precision: precision.row.weights.width))
_FORMERLY = {row.formerly: precision for precision, row in TABLE.items() if row.formerly is not None}


def today(name: str) -> str:
    """Today's name of what the first edition called so; any other word as it is.

    >>> today("int6")
    'int6_in_8'
    """
    former = _FORMERLY.get(name)
    return former.value if former is not None else name
