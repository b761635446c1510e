"""Mixtures of experts whose weights lie in one stack: products with a weight that is chosen while the model runs.

Other exporters keep all experts of a layer in one tensor, [experts, ...]. A token's weights are gathered from it
(transformers' `batched_mm`), every expert multiplies every token (one product with the whole stack), or one operator of
ONNX Runtime's does it all. None of them has a constant matrix as an operand, so none is a Site; but what it is, and why
it stays as it is, can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from spq_graph.passes.base.values import FLOATS, is_product, is_standard, users_of, weight_of
from spq_graph.passes.find.branches import MOVES, TO_DOWN, only_dynamic, projection
from spq_graph.passes.find.collect import module_path
from spq_graph.passes.find.patterns import GluMatch
from spq_graph.terms.site import Role, Unmatched, layer_of

# A whole mixture of experts: inputs 0, 1, 2 are the hidden states, the router's output and the first stack of weights.
# By operator: which input holds the weights that are multiplied with the gate, where the first stack does not.
_FUSED = {"MoE": 6, "QMoE": 8}
_GATED = {"silu": "swiglu", "gelu": "geglu", "relu": "reglu"}
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
    "by a constant": "a node of the graph picks them as a stack, and integer kernels take one matrix only",
    "": "one product takes all experts' weights at once, and integer kernels take one matrix only",
}


@dataclass(frozen=True, slots=True)
class FusedExperts:
    """A whole mixture of experts in one operator.

    Attributes:
        key: module path as the exporter recorded it, or the node's name.
        node, op_type: its node.
        experts: how many; None where its weights are no constants.
        kind: of its GLUs; empty where nothing is gated.
        layer: decoder layer, numbered from 0, where known.
    """

    key: str
    node: str
    op_type: str
    experts: int | None
    kind: str
    layer: int | None

    @property
    def unmatched(self) -> Unmatched:
        """What it is, and that nothing is done to it."""
        where = f" of layer {self.layer}" if self.layer is not None else ""
        gate = f"a {self.kind} each" if self.kind else "without a gate"
        experts = "its" if self.experts is None else f"{self.experts}"
        held = f"holds all projections of {experts} experts, {gate}, in one operator"
        return Unmatched(self.node, f"{self.op_type}{where} {held}; it stays as it is")


def find_fused(graph: ir.Graph) -> dict[ir.Node, FusedExperts]:
    """Every mixture of experts in one operator, by node, in the graph's order."""
    found = {}
    for node in graph:
        if is_fused(node):
            key = module_path(node) or node.name or ""
            stack = weight_of(node.inputs[2]) if len(node.inputs) > 2 else None
            experts = int(stack.tensor.shape.numpy()[0]) if stack is not None and stack.tensor.shape else None
            found[node] = FusedExperts(key, node.name or "", node.op_type, experts, _kind_of(node), layer_of(key))
    return found


def is_fused(node: ir.Node) -> bool:
    """Whether a node is a mixture of experts of ONNX Runtime's."""
    return node.op_type in _FUSED and not is_standard(node)


def _kind_of(node: ir.Node) -> str:
    attribute = node.attributes.get("activation_type")
    activation = "relu" if attribute is None else attribute.as_string()
    third = _FUSED[node.op_type]
    gated = len(node.inputs) > third and node.inputs[third] is not None
    return activation if activation == "swiglu" else _GATED.get(activation, "") if gated else ""


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
    roles |= (
        {glu.gate: Role.EXPERT_GATE_UP} if glu.gate is glu.up else {glu.gate: Role.EXPERT_GATE, glu.up: Role.EXPERT_UP}
    )
    for node, role in roles.items():
        stacked[node] = replace(stacked[node], role=role)
