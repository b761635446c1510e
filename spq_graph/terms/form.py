"""What a product can become in a graph: the words, and what stands in for each where it cannot be run."""

from __future__ import annotations

from enum import StrEnum

from spq_graph.terms.kernels import BRANCH_KERNEL, FP8_KERNEL, GATHER_KERNEL, TOKEN_KERNEL


class Form(StrEnum):
    """What a site's product becomes in the graph."""

    QDQ = "qdq"  # QuantizeLinear and DequantizeLinear on the activation, DequantizeLinear on the weight
    MATMUL_INTEGER = "matmul_integer"  # QuantizeLinear, MatMulInteger, and Cast and Mul that dequantize
    NBITS = "matmul_nbits"  # com.microsoft::MatMulNBits, whose CPU kernel may round activations by block
    NBITS_FLOAT = "matmul_nbits_float"  # the same, whose activations stay in float32
    FP8_QDQ = "fp8_qdq"  # QuantizeLinear and DequantizeLinear in FP8 on both operands
    OPERATOR = "operator"  # spq::Fp8MatMul, with the function that it stands for
    WITH_BRANCH = "with_branch"  # spq::Int8MatMulBranch, likewise: a static range, and an outlier branch
    BY_TOKEN = "by_token"  # spq::Int8MatMulByToken, likewise
    WEIGHT = "weight"  # DequantizeLinear on the weight alone
    FP8_WEIGHT = "fp8_weight"  # the same, of FP8
    STORED = "stored"  # the weight held in it, the product as the graph computes
    COMPUTED = "computed"  # the product itself computed in it
    AS_IS = "as_is"  # float32
    LOOKUP = "gather_block_quantized"  # com.microsoft::GatherBlockQuantized in place of a Gather from a table
    LOOKUP_PANELS = "gather_panels"  # spq::Int8Gather, from the panels of a head by token that is tied to the table
    LOOKUP_NODES = "gather_codes"  # Gather of codes and of scales, and what dequantizes the rows
    # What emulations have in place of what ONNX Runtime's CPU provider cannot run:
    FP8_QDQ_WIDENED = "fp8_qdq_widened"  # Cast and Mul on the weight
    FP8_WEIGHT_WIDENED = "fp8_weight_widened"
    ROUNDED = "rounded"  # operands and result rounded, the product in float32

    @property
    def words(self) -> str:
        """What is written, for people."""
        return _WRITTEN[self]


_WRITTEN = {
    Form.QDQ: "Q/DQ on both operands",
    Form.MATMUL_INTEGER: "MatMulInteger",
    Form.NBITS: "MatMulNBits",
    Form.NBITS_FLOAT: "MatMulNBits in float32",
    Form.FP8_QDQ: "Q/DQ on both operands",
    Form.OPERATOR: f"spq::{FP8_KERNEL}",
    Form.WITH_BRANCH: f"spq::{BRANCH_KERNEL}",
    Form.BY_TOKEN: f"spq::{TOKEN_KERNEL}",
    Form.WEIGHT: "DequantizeLinear on the weight",
    Form.FP8_WEIGHT: "DequantizeLinear on the weight",
    Form.STORED: "MatMul",
    Form.COMPUTED: "MatMul in it",
    Form.AS_IS: "MatMul",
    Form.LOOKUP: "GatherBlockQuantized",
    Form.LOOKUP_PANELS: f"spq::{GATHER_KERNEL}",
    Form.LOOKUP_NODES: "Gather of codes and scales, Cast, Sub, Mul",
    Form.FP8_QDQ_WIDENED: "Q/DQ on the activation, Cast and Mul on the weight",
    Form.FP8_WEIGHT_WIDENED: "Cast and Mul on the weight",
    Form.ROUNDED: "MatMul between Casts",
}
# The operators of our own, by form: what they are called where the library's kernel ran.
OWN = {Form.OPERATOR: FP8_KERNEL, Form.BY_TOKEN: TOKEN_KERNEL, Form.WITH_BRANCH: BRANCH_KERNEL}
# What stands for a form where ONNX Runtime's CPU provider cannot run it, or computes something else: same numbers.
STAND_INS = {
    Form.MATMUL_INTEGER: Form.QDQ,
    Form.NBITS: Form.NBITS_FLOAT,  # whose kernel heeds the level on a CPU only
    Form.FP8_QDQ: Form.FP8_QDQ_WIDENED,
    Form.FP8_WEIGHT: Form.FP8_WEIGHT_WIDENED,
    Form.COMPUTED: Form.ROUNDED,
}
