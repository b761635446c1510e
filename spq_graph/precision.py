"""The arithmetic that a site can have."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """The arithmetic of one Site."""

    INT8 = "int8"
    INT7 = "int7"
    INT6 = "int6"
    INT5 = "int5"
    INT4 = "int4"
    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    W8A16 = "w8a16"
    FP8_E4M3 = "fp8_e4m3"
    FP8_E5M2 = "fp8_e5m2"
    W8FP8A16 = "w8fp8a16"

    @property
    def bits(self) -> int | None:
        """Bits of weights and activations for the integer precisions, None for the rest."""
        return int(self.value[3:]) if self.value.startswith("int") else None

    @property
    def is_fp8(self) -> bool:
        """Whether weights are held in FP8: the precisions of spq::Fp8MatMul."""
        return self in (Precision.FP8_E4M3, Precision.FP8_E5M2, Precision.W8FP8A16)

    @property
    def needs_range(self) -> bool:
        """Whether activations are quantized with a static scale, which takes a calibrated range."""
        return self.bits is not None or self in (Precision.FP8_E4M3, Precision.FP8_E5M2)

    @classmethod
    def integer(cls, bits: int) -> Precision:
        """The integer precision of so many bits."""
        return cls(f"int{bits}")
