"""What runtimes call the kernels by which a product is proved to have run as planned."""

from __future__ import annotations

# What ONNX Runtime fuses Q/DQ around a product into, and what multiplies in integers without it.
INTEGER_KERNELS = frozenset(
    {"MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulInteger16"}
    | {"FullyConnected_int8", "MatMul_int8"}  # as OpenVINO calls its products, with the type that they multiply in
)

# What reads integer weights alone: ONNX Runtime's, and OpenVINO's products that decompress them.
WEIGHT_KERNELS = frozenset({"MatMulNBits", "FullyConnected_float_weights_int8", "MatMul_float_weights_int8"})

# What looks tokens up in a table of codes: in one operator, or as the first of several.
LOOKUP_KERNELS = frozenset({"GatherBlockQuantized", "Gather"})

# The operator of our own: under this name where its kernel ran, and otherwise as the operators of its function.
FP8_KERNEL = "Fp8MatMul"
