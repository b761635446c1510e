"""Mixtures of experts whose weights lie in one stack: products with a weight that is chosen while the model runs.

transformers keeps all experts of a layer in one tensor, [experts, ...]. Exported, a token's weights are gathered from
it (`batched_mm`), or every expert multiplies every token (one product with the whole stack). Neither has a constant
matrix as an operand, so neither is a Site; but what it is, and why it stays in floating point, can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from spq_graph.passes.branches import MOVES, TO_DOWN, only_dynamic, projection
from spq_graph.passes.collect import is_product, module_path
from spq_graph.passes.patterns import GluMatch
from spq_graph.passes.values import FLOATS, is_standard, users_of, weight_of
from spq_graph.sites import Role, Unmatched, layer_of

_CHOICES = frozenset({"Gather", "GatherND", "GatherElements"})
_TO_STACK = frozenset({"Transpose", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True, slots=True)
class StackedProduct:
    """A product of activations with one of the matrices of a stack, or with all of them.

    Attributes:
        key: module path as the exporter recorded it, or the node's name.
        node: name of the MatMul.
        input: the value that holds the activations.
        stack: name of the initializer.
        shape: of the stack, (experts, rows, columns), as it is stored.
        chosen: how the matrix is chosen: "by token", "by a constant", or "" where all of them multiply.
        role: what it does, once known.
        layer: decoder layer, numbered from 0, where known.
    """

    key: str
    node: str
    input: ir.Value
    stack: str
    shape: tuple[int, int, int]
    chosen: str
    role: Role = Role.OTHER
    layer: int | None = None

    @property
    def unmatched(self) -> Unmatched:
        """What it is, and why it is no Site."""
        experts, rows, columns = self.shape
        what = self.role.value if self.role is not Role.OTHER else "a product of experts, outside of any GLU"
        where = f" of layer {self.layer}" if self.layer is not None else ""
        weights = f"{experts} experts, weights [{rows}, {columns}] each, stacked in '{self.stack}'"
        return Unmatched(
            self.node, f"{what}{where}: {weights}; it stays in floating point, because {_WHY[self.chosen]}"
        )


_WHY = {
    "by token": "which weights a token gets is known only at run time, and integer kernels take constant ones",
    "by a constant": "a node of the graph cuts its weights out of the stack; fold constants, and it is a site",
    "": "one product takes all experts' weights at once, and integer kernels take one matrix only",
}


def find_stacked(graph: ir.Graph) -> dict[ir.Node, StackedProduct]:
    """Every product with a stack of matrices of the main graph, by node, in the graph's order."""
    found: dict[ir.Node, StackedProduct] = {}
    for node in graph:
        if is_product(node) and len(node.inputs) == 2:
            product = _stacked(node, 1, 0) or _stacked(node, 0, 1)
            if product is not None:
                found[node] = product
    return found


def _stacked(node: ir.Node, weight: int, activation: int) -> StackedProduct | None:
    value, chosen = node.inputs[weight], ""
    other, left = node.inputs[activation], 64
    while value is not None and other is not None and left:
        left -= 1
        if (shape := _shape_of_stack(value)) is not None:
            key = module_path(node) or node.name or ""
            name = value.name or ""
            return StackedProduct(key, node.name or "", other, name, shape, chosen, layer=layer_of(key))
        producer = value.producer()
        if producer is None or not is_standard(producer):
            return None
        if producer.op_type in _CHOICES and not chosen:
            chosen = "by token" if weight_of(producer.inputs[1]) is None else "by a constant"
        elif producer.op_type not in _TO_STACK:
            return None
        value = producer.inputs[0]
    return None


def _shape_of_stack(value: ir.Value) -> tuple[int, int, int] | None:
    tensor = value.const_value
    if tensor is None or value.producer() is not None or tensor.dtype not in FLOATS or len(tensor.shape) != 3:
        return None
    experts, rows, columns = (int(d) for d in tensor.shape.numpy())
    return (experts, rows, columns) if min(experts, rows, columns) > 1 else None


@dataclass(frozen=True, slots=True)
class StackedGlu:
    """The products of one GLU over a stack of experts; gate is up where they are fused."""

    gate: ir.Node
    up: ir.Node
    down: ir.Node


def stacked_glu(match: GluMatch, stacked: Mapping[ir.Node, StackedProduct]) -> StackedGlu | None:
    """The stacked products around a GLU; None where one of them is none."""
    gate, up = projection(match.gate, stacked), projection(match.up, stacked)
    down = _down_of(match.product, stacked)
    return StackedGlu(gate, up, down) if gate is not None and up is not None and down is not None else None


def _down_of(product: ir.Node, stacked: Mapping[ir.Node, StackedProduct], depth: int = 6) -> ir.Node | None:
    for user in users_of(product.outputs[0]):
        if user in stacked:
            return user
        moves = user.op_type in TO_DOWN | MOVES and only_dynamic(user) is product.outputs[0]
        if moves and depth and (down := _down_of(user, stacked, depth - 1)) is not None:
            return down
    return None


def with_roles(glu: StackedGlu, stacked: dict[ir.Node, StackedProduct]) -> None:
    """Note the roles of a GLU's products."""
    roles = {glu.down: Role.EXPERT_DOWN}
    roles |= {glu.gate: Role.EXPERT_GATE_UP} if glu.gate is glu.up else {
        glu.gate: Role.EXPERT_GATE, glu.up: Role.EXPERT_UP,
    }  # fmt: skip
    for node, role in roles.items():
        stacked[node] = replace(stacked[node], role=role)
