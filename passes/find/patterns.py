"""What a gated linear unit looks like, in onnxscript's pattern language.

A GLU is act(gate) * up (Shazeer, arXiv 2002.05202). Each pattern is a function; operands of commutative nodes are tried
both ways round. Nothing is removed from the graph, so matched values may have other consumers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter.pattern import Pattern

from spq_graph.passes.base.values import scalar_of, users_of, weight_of
from spq_graph.terms.targets import CONTRIB

Op = Any  # onnxscript's pattern builder: any attribute of it is an operator
Written = Callable[..., Any]  # how an activation, or a whole GLU, may be written


def silu(op: Op, gate: Any) -> Any:
    """SiLU written out: the form that torch.export gives."""
    return op.Mul(gate, op.Sigmoid(gate))


def silu_scaled(op: Op, gate: Any, alpha: Any) -> Any:
    """Swish with a factor inside of the sigmoid, as in the quick approximation of Gelu."""
    return op.Mul(gate, op.Sigmoid(op.Mul(gate, alpha)))


def silu_cast(op: Op, gate: Any) -> Any:
    """SiLU of a graph in half precision whose sigmoid is computed in single."""
    widened = op.Cast(gate, _allow_other_attributes=True)
    return op.Mul(gate, op.Cast(op.Sigmoid(widened), _allow_other_attributes=True))


def silu_exp(op: Op, gate: Any, one: Any) -> Any:
    """SiLU as a quotient, without a Sigmoid node."""
    return op.Div(gate, op.Add(op.Exp(op.Neg(gate)), one))


def swish(op: Op, gate: Any) -> Any:
    """Swish of opset 24."""
    return op.Swish(gate, _allow_other_attributes=True)


def quick_gelu(op: Op, gate: Any) -> Any:
    """ONNX Runtime's fused x * sigmoid(alpha x)."""
    return op.QuickGelu(gate, _domain=CONTRIB, _allow_other_attributes=True)


def gelu(op: Op, gate: Any) -> Any:
    """Gelu of opset 20, exact or tanh."""
    return op.Gelu(gate, _allow_other_attributes=True)


def gelu_contrib(op: Op, gate: Any) -> Any:
    """ONNX Runtime's Gelu."""
    return op.Gelu(gate, _domain=CONTRIB)


def gelu_fast(op: Op, gate: Any) -> Any:
    """ONNX Runtime's tanh Gelu."""
    return op.FastGelu(gate, _domain=CONTRIB)


def relu(op: Op, gate: Any) -> Any:
    """Relu."""
    return op.Relu(gate)


def relu_squared(op: Op, gate: Any) -> Any:
    """Squared ReLU (So et al., arXiv 2109.08668), as a product."""
    rectified = op.Relu(gate)
    return op.Mul(rectified, rectified)


def relu_power(op: Op, gate: Any, two: Any) -> Any:
    """The same, as a power."""
    return op.Pow(op.Relu(gate), two)


def sigmoid(op: Op, gate: Any) -> Any:
    """The gate of the original unit."""
    return op.Sigmoid(gate)


def _gelu_written_out(squash: str) -> list[Written]:
    """0.5 x (1 + squash(inner)), in the ways to associate it; `inner` and the constants are checked later."""

    def half_gate(op: Op, gate: Any, inner: Any, one: Any, half: Any) -> Any:
        return op.Mul(op.Mul(gate, half), op.Add(getattr(op, squash)(inner), one))

    def half_last(op: Op, gate: Any, inner: Any, one: Any, half: Any) -> Any:
        return op.Mul(op.Mul(gate, op.Add(getattr(op, squash)(inner), one)), half)

    def half_inside(op: Op, gate: Any, inner: Any, one: Any, half: Any) -> Any:
        return op.Mul(gate, op.Mul(op.Add(getattr(op, squash)(inner), one), half))

    return [half_gate, half_last, half_inside]


def silu_product_first(op: Op, gate: Any, up: Any) -> Any:
    """A whole SwiGLU, associated so that SiLU itself never stands in the graph."""
    return op.Mul(op.Mul(gate, up), op.Sigmoid(gate))


def silu_sigmoid_first(op: Op, gate: Any, up: Any) -> Any:
    """The same, the other way."""
    return op.Mul(gate, op.Mul(op.Sigmoid(gate), up))


@dataclass(frozen=True, slots=True)
class GluMatch:
    """act(gate) * up, as found in a graph."""

    kind: str
    product: ir.Node
    gate: ir.Value
    up: ir.Value


# The operator that gives an activation away: what a GLU with it is called, and how it may be written.
_ACTIVATIONS: dict[str, list[tuple[str, Sequence[Written]]]] = {
    "Sigmoid": [("swiglu", [silu, silu_scaled, silu_cast]), ("glu", [sigmoid])],
    "Exp": [("swiglu", [silu_exp])],
    "Swish": [("swiglu", [swish])],
    "QuickGelu": [("swiglu", [quick_gelu])],
    "Gelu": [("geglu", [gelu, gelu_contrib])],
    "FastGelu": [("geglu", [gelu_fast])],
    "Erf": [("geglu", _gelu_written_out("Erf"))],
    "Tanh": [("geglu", _gelu_written_out("Tanh"))],
    "Relu": [("reglu", [relu]), ("squared_reglu", [relu_squared, relu_power])],
}
_WHOLE: dict[str, list[tuple[str, Sequence[Written]]]] = {
    "Sigmoid": [("swiglu", [silu_product_first, silu_sigmoid_first])]
}
_CONSTANTS = {"one": 1.0, "half": 0.5, "two": 2.0}
_UNCHANGED = frozenset({"Cast", "Identity", "Dropout"})  # between an activation and its product
_SHAPED = frozenset({"Reshape", "Expand", "Squeeze", "Unsqueeze"})
ACTIVATIONS = frozenset(_ACTIVATIONS)


@cache
def _patterns(op_type: str, whole: bool) -> list[tuple[str, Pattern]]:
    families = (_WHOLE if whole else _ACTIVATIONS).get(op_type, [])
    # `commute` lists the pattern with the operands of its Mul and Add nodes both ways round; the wrapper hides it.
    return [
        (kind, Pattern(variant))
        for kind, forms in families
        for form in forms
        for variant in Pattern(form)._target_pattern.commute()
    ]


def _bindings(model: ir.Model, root: ir.Node, op_type: str, *, whole: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the patterns around `op_type` bind, where one ends at `root`."""
    for kind, pattern in _patterns(op_type, whole):
        found = pattern.match(model, model.graph, root, check_nodes_are_removable=False)
        if found and _constants_hold(found.bindings):
            yield kind, found.bindings


def _constants_hold(bound: dict[str, Any]) -> bool:
    for name, wanted in _CONSTANTS.items():
        if name in bound and not math.isclose(scalar_of(bound[name]) or 0.0, wanted, rel_tol=1e-3):
            return False
    if "alpha" in bound and scalar_of(bound["alpha"]) is None:
        return False
    return "inner" not in bound or follows_from(bound["inner"], bound["gate"])


def follows_from(value: ir.Value, source: ir.Value, depth: int = 8) -> bool:
    """Whether a value is computed from `source` and constants alone, without a product of matrices."""
    if value is source:
        return True
    node = value.producer()
    if node is None or depth == 0 or node.op_type in ("MatMul", "Gemm"):
        return False
    # What shape a value is brought into may come from anywhere.
    values = node.inputs[:1] if node.op_type in _SHAPED else node.inputs
    operands = [v for v in values if v is not None and not _is_constant(v)]
    return bool(operands) and all(follows_from(v, source, depth - 1) for v in operands)


def _is_constant(value: ir.Value, depth: int = 3) -> bool:
    """Whether a value is a constant, or computed from constants alone, as the square root in Gelu's definition is."""
    if weight_of(value) is not None:
        return True
    node = value.producer()
    if node is None or not depth or not node.inputs:
        return False
    return all(v is None or _is_constant(v, depth - 1) for v in node.inputs)


def find_glus(model: ir.Model) -> Iterator[GluMatch]:
    """Every GLU of the main graph, in the order of its nodes; linear in the number of nodes."""
    matches: dict[ir.Node, GluMatch] = {}
    for node in model.graph:
        if node.op_type in ACTIVATIONS:
            for match in _matches_around(model, node):
                known = matches.get(match.product)
                # sigmoid(g) * (g * u) reads as a plain sigmoid gate too: the form that explains more wins.
                if known is None or known.kind == "glu":
                    matches[match.product] = match
    explained = {
        v.producer() for match in matches.values() if match.kind != "glu" for v in match.product.inputs if v is not None
    }
    for node in model.graph:
        if node in matches and not (matches[node].kind == "glu" and node in explained):
            yield matches[node]


def _matches_around(model: ir.Model, node: ir.Node) -> Iterator[GluMatch]:
    for root in _roots(node):
        for kind, bound in _bindings(model, root, node.op_type, whole=False):
            gate = bound["gate"]
            for product, up in _products(root.outputs[0]):
                # x * sigmoid(x) and relu(x) * relu(x) are activations of one branch: nothing is gated.
                if weight_of(up) is None and not follows_from(up, gate) and not follows_from(gate, up):
                    yield GluMatch(kind, product, gate, up)
        for kind, bound in _bindings(model, root, node.op_type, whole=True):
            if bound["gate"] is not bound["up"] and weight_of(bound["up"]) is None:
                yield GluMatch(kind, root, bound["gate"], bound["up"])


def _roots(node: ir.Node, depth: int = 3) -> Iterator[ir.Node]:
    """Nodes where a pattern around `node` may end: itself, and what it reaches through sums and products."""
    yield node
    if depth:
        for user in users_of(node.outputs[0]):
            if user.op_type in ("Mul", "Add", "Div", "Cast", "Pow"):
                yield from _roots(user, depth - 1)


def _products(value: ir.Value, depth: int = 3) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Products that a value enters, with the other operand."""
    for user in users_of(value):
        if user.op_type == "Mul":
            one, other = user.inputs
            if one is not None and other is not None:
                yield user, other if one is value else one
        elif depth and user.op_type in _UNCHANGED:
            yield from _products(user.outputs[0], depth - 1)
