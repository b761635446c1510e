"""What we leave in a graph, and know our own work by."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.numbers.fp8 import WEIGHTS
from spq_graph.terms.kernels import FP8_KERNEL, GATHERS, INT8_OPERATORS, OPERATORS
from spq_graph.terms.targets import OURS

PREFIX = "spq_graph."
ADDED = "spq_graph.added"  # node metadata: this node was inserted, for the node named
DOMAIN, OP, VERSION = OURS, FP8_KERNEL, 1
OLDEST_IR = 9  # of a file with one of our operators
FP8 = ir.DataType(WEIGHTS.element_type)  # of every weight that we write in 8-bit floating point


def is_ours(node: ir.Node) -> bool:
    """Whether a node is one of our operators."""
    return node.domain == DOMAIN and node.op_type in OPERATORS


def is_fp8_matmul(node: ir.Node) -> bool:
    """Whether a node is spq::Fp8MatMul."""
    return node.op_type == OP and node.domain == DOMAIN


def is_int8_matmul(node: ir.Node) -> bool:
    """Whether a node is spq::Int8MatMul, of any kind."""
    return node.domain == DOMAIN and node.op_type in INT8_OPERATORS


def is_int8_gather(node: ir.Node) -> bool:
    """Whether a node is spq::Int8Gather, of any kind."""
    return node.domain == DOMAIN and node.op_type in GATHERS


def multiplies(node: ir.Node) -> bool:
    """Whether a node is one of our operators that multiply."""
    return is_fp8_matmul(node) or is_int8_matmul(node)
