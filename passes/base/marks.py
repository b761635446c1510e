"""What we leave in a graph, and know our own work by."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.numbers.fp8 import WEIGHTS
from spq_graph.terms.kernels import FP8_KERNEL
from spq_graph.terms.targets import OURS

PREFIX = "spq_graph."
ADDED = "spq_graph.added"  # node metadata: this node was inserted, for the node named
DOMAIN, OP, VERSION = OURS, FP8_KERNEL, 1
FP8 = ir.DataType(WEIGHTS.element_type)  # of every weight that we write in 8-bit floating point


def is_fp8_matmul(node: ir.Node) -> bool:
    """Whether a node is the operator."""
    return node.op_type == OP and node.domain == DOMAIN
