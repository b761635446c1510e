"""What we leave in a graph, and know our own work by."""

from __future__ import annotations

import onnx_ir as ir

from spq_graph.passes.numbers.fp8 import WEIGHTS

PREFIX = "spq_graph."
ADDED = "spq_graph.added"  # node metadata: this node was inserted, for the node named
DOMAIN, OP, VERSION = "spq", "Fp8MatMul", 1
PANELS_TYPE = ir.DataType(WEIGHTS.element_type)


def is_fp8_matmul(node: ir.Node) -> bool:
    """Whether a node is the operator."""
    return node.op_type == OP and node.domain == DOMAIN
