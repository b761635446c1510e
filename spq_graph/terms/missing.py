"""Why a target cannot run a precision that it has no form for, in words."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from spq_graph.terms.precision import Precision

_BY_BLOCK = tuple(p for p in Precision if p.row.by_block)
_NO_BF16 = "ONNX Runtime's CPU provider has no product in bfloat16"

MISSING: Mapping[str, Mapping[Precision, str]] = MappingProxyType(
    {
        "cpu": {Precision.BF16: _NO_BF16},
        "cuda": {
            Precision.W8A8_TOKEN: "there is no CUDA kernel of spq::Int8MatMulByToken, and ONNX Runtime's "
            "MatMulInteger has none for the uint8 activations of its function",
            **dict.fromkeys(
                (Precision.W8A8_BLOCK, Precision.W8A8_BLOCK32),
                "ONNX Runtime's CUDA kernel of MatMulNBits takes activations as they are",
            ),
        },
        "tensorrt": {
            Precision.FP8_E5M2: "TensorRT has FP8 in E4M3 only",
            Precision.W8FP8A16: "TensorRT has no product of FP8 weights alone",
            Precision.W8A8_TOKEN: "TensorRT takes scales of activations that are settled beforehand only",
            **dict.fromkeys(
                _BY_BLOCK, "TensorRT has 8-bit integers on both sides of a product only, and no MatMulNBits"
            ),
        },
        "openvino": {
            **dict.fromkeys(
                (Precision.FP8_E4M3, Precision.FP8_E5M2),
                "OpenVINO's CPU plugin has no product in FP8: w8fp8a16 keeps FP8 weights, which it widens at load",
            ),
            Precision.BF16: "OpenVINO takes bfloat16 as a setting of the whole model, not of a site",
            Precision.W8A8_TOKEN: "a file for OpenVINO holds no functions, and its CPU plugin works scales of "
            "activations out by a setting of the whole model",
            **dict.fromkeys(
                (Precision.W8A8_BLOCK, Precision.W8A8_BLOCK32),
                "a file tells OpenVINO of 8-bit weights alone, and a setting of the whole model how activations "
                "are taken",
            ),
        },
        "portable": {
            **dict.fromkeys(
                _BY_BLOCK, "it needs com.microsoft.MatMulNBits, and the file may hold standard operators only"
            ),
            Precision.W8A8_TOKEN: "it is MatMulInteger in a function, and a portable file has its integers in "
            "Q/DQ, which any runtime takes for what they are",
            Precision.BF16: _NO_BF16,
        },
    }
)
