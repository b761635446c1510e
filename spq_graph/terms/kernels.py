"""What runtimes call the kernels by which a product is proved to have run as planned."""

from __future__ import annotations

# An entry of ONNX Runtime's session options. On x86 without VNNI its u8 x s8 kernels keep the sum of two products in 16
# bits, which overflows: at "1" it takes u8 x u8 kernels there, exact and about a sixth slower; elsewhere none changes.
EXACT_SUMS = "session.x64quantprecision"

# Operators of our own: under these names where their kernels ran, and otherwise as the operators of their functions.
FP8_KERNEL, TOKEN_KERNEL, BRANCH_KERNEL = "Fp8MatMul", "Int8MatMulByToken", "Int8MatMulBranch"
INT8_OPERATORS = frozenset({TOKEN_KERNEL, f"{TOKEN_KERNEL}Branch", "Int8MatMul", BRANCH_KERNEL})
GATHER_KERNEL = "Int8Gather"
GATHERS = frozenset({GATHER_KERNEL, f"{GATHER_KERNEL}Branch"})
OPERATORS = INT8_OPERATORS | GATHERS | {FP8_KERNEL}

# What ONNX Runtime fuses Q/DQ around a product into, what multiplies in integers without it, and our own.
INTEGER_KERNELS = INT8_OPERATORS | frozenset(
    {"MatMulIntegerToFloat", "QLinearMatMul", "QGemm", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulInteger16"}
    | {"FullyConnected_int8", "MatMul_int8"}  # as OpenVINO calls its products, with the type that they multiply in
)

# What reads integer weights alone: ONNX Runtime's, and OpenVINO's products that decompress them.
WEIGHT_KERNELS = frozenset({"MatMulNBits", "FullyConnected_float_weights_int8", "MatMul_float_weights_int8"})

# What looks tokens up in a table of codes: in one operator, or as the first of several.
LOOKUP_KERNELS = GATHERS | frozenset({"GatherBlockQuantized", "Gather"})
