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

from spq_graph.passes.graph import scalar_of, users_of

Op = Any  # onnxscript's pattern builder: any attribute of it is an operator


def swiglu(op: Op, gate: Any, up: Any) -> Any:
    """SiLU written out: the form that torch.export gives."""
    return op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)


def swiglu_product_first(op: Op, gate: Any, up: Any) -> Any:
    """The same product, associated otherwise."""
    return op.Mul(op.Mul(gate, up), op.Sigmoid(gate))


def swiglu_sigmoid_first(op: Op, gate: Any, up: Any) -> Any:
    """The same product, associated otherwise."""
    return op.Mul(gate, op.Mul(op.Sigmoid(gate), up))


def swiglu_swish(op: Op, gate: Any, up: Any) -> Any:
    """Swish of opset 24."""
    return op.Mul(op.Swish(gate), up)


def swiglu_quick_gelu(op: Op, gate: Any, up: Any) -> Any:
    """ONNX Runtime's fused x * sigmoid(alpha x)."""
    return op.Mul(op.QuickGelu(gate, _domain="com.microsoft", _allow_other_attributes=True), up)


def geglu(op: Op, gate: Any, up: Any) -> Any:
    """Gelu of opset 20, exact or tanh."""
    return op.Mul(op.Gelu(gate, _allow_other_attributes=True), up)


def geglu_contrib(op: Op, gate: Any, up: Any) -> Any:
    """ONNX Runtime's Gelu."""
    return op.Mul(op.Gelu(gate, _domain="com.microsoft"), up)


def geglu_fast(op: Op, gate: Any, up: Any) -> Any:
    """ONNX Runtime's tanh Gelu."""
    return op.Mul(op.FastGelu(gate, _domain="com.microsoft"), up)


def reglu(op: Op, gate: Any, up: Any) -> Any:
    """Relu gate."""
    return op.Mul(op.Relu(gate), up)


def glu(op: Op, gate: Any, up: Any) -> Any:
    """The original unit, with a sigmoid gate."""
    return op.Mul(op.Sigmoid(gate), up)


def _gelu_written_out(squash: str) -> list[Callable[..., Any]]:
    """0.5 x (1 + squash(inner)), in the three ways to associate it; `inner` and the constants are checked later."""

    def gate_half(op: Op, gate: Any, up: Any, inner: Any, one: Any, half: Any) -> Any:
        return op.Mul(op.Mul(op.Mul(gate, half), op.Add(getattr(op, squash)(inner), one)), up)

    def half_last(op: Op, gate: Any, up: Any, inner: Any, one: Any, half: Any) -> Any:
        return op.Mul(op.Mul(op.Mul(gate, op.Add(getattr(op, squash)(inner), one)), half), up)

    def half_inside(op: Op, gate: Any, up: Any, inner: Any, one: Any, half: Any) -> Any:
        return op.Mul(op.Mul(gate, op.Mul(op.Add(getattr(op, squash)(inner), one), half)), up)

    return [gate_half, half_last, half_inside]


@dataclass(frozen=True, slots=True)
class GluMatch:
    """act(gate) * up, as found in a graph."""

    kind: str
    product: ir.Node
    gate: ir.Value
    up: ir.Value


_TABLE: dict[str, tuple[str, Sequence[Callable[..., Any]]]] = {
    # the operator that gives a GLU away: (kind, patterns), the most specific first
    "Sigmoid": ("swiglu", [swiglu, swiglu_product_first, swiglu_sigmoid_first]),
    "Swish": ("swiglu", [swiglu_swish]),
    "QuickGelu": ("swiglu", [swiglu_quick_gelu]),
    "Gelu": ("geglu", [geglu, geglu_contrib]),
    "FastGelu": ("geglu", [geglu_fast]),
    "Erf": ("geglu", _gelu_written_out("Erf")),
    "Tanh": ("geglu", _gelu_written_out("Tanh")),
    "Relu": ("reglu", [reglu]),
}
ACTIVATIONS = frozenset(_TABLE)


@cache
def _patterns(op_type: str) -> list[tuple[str, Pattern]]:
    kind, functions = _TABLE[op_type]
    families = [(kind, function) for function in functions]
    if op_type == "Sigmoid":
        families.append(("glu", glu))
    # `commute` lists the pattern with the operands of its Mul and Add nodes both ways round; the wrapper hides it.
    return [(kind, Pattern(form)) for kind, f in families for form in Pattern(f)._target_pattern.commute()]


def match_glu(model: ir.Model, product: ir.Node, op_type: str) -> GluMatch | None:
    """Match a Mul node as the product of a GLU whose activation is, or contains, `op_type`."""
    for kind, pattern in _patterns(op_type):
        found = pattern.match(model, model.graph, product, check_nodes_are_removable=False)
        if not found:
            continue
        bound = found.bindings
        gate, up = bound["gate"], bound["up"]
        if gate is up or _is_scalar(up) or not _gelu_constants_hold(bound):
            continue
        if kind == "glu" and _is_silu_tail(product, gate):
            continue
        return GluMatch(kind, product, gate, up)
    return None


def _is_silu_tail(product: ir.Node, gate: ir.Value) -> bool:
    """sigmoid(g) * (g * u) is a SwiGLU with another association, found by a pattern of its own."""
    return any(
        value is not None and (node := value.producer()) is not None and node.op_type == "Mul" and gate in node.inputs
        for value in product.inputs
    )


def _is_scalar(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.size == 1


def _gelu_constants_hold(bound: dict[str, Any]) -> bool:
    if "inner" not in bound:
        return True
    one, half = scalar_of(bound["one"]), scalar_of(bound["half"])
    return (
        one is not None and half is not None and math.isclose(one, 1.0, rel_tol=1e-3)
        and math.isclose(half, 0.5, rel_tol=1e-3) and _function_of(bound["inner"], bound["gate"])
    )  # fmt: skip


def _function_of(value: ir.Value, gate: ir.Value, depth: int = 8) -> bool:
    """Whether a value is computed from `gate` and constants alone."""
    if value is gate:
        return True
    node = value.producer()
    if node is None or depth == 0:
        return False
    operands = [v for v in node.inputs if v is not None and v.const_value is None]
    return bool(operands) and all(_function_of(v, gate, depth - 1) for v in operands)


def find_glus(model: ir.Model) -> Iterator[GluMatch]:
    """Every GLU of the main graph, in the order of its nodes; linear in the number of nodes."""
    products: dict[ir.Node, str] = {}
    for node in model.graph:
        if node.op_type in ACTIVATIONS:
            for product in _products_after(node):
                products.setdefault(product, node.op_type)
    inner: set[ir.Node] = set()
    matches: dict[ir.Node, GluMatch] = {}
    for product, op_type in products.items():
        if match := match_glu(model, product, op_type):
            matches[product] = match
            inner |= {v.producer() for v in product.inputs if v is not None and v.producer() is not None}  # type: ignore[misc]
    # sigmoid(g) * u of g * (sigmoid(g) * u) matches too: the outer product is the GLU.
    for node in model.graph:
        if node in matches and not (matches[node].kind == "glu" and node in inner):
            yield matches[node]


def _products_after(node: ir.Node, depth: int = 4) -> Iterator[ir.Node]:
    """Mul nodes that an activation reaches through Add and Mul."""
    for user in users_of(node.outputs[0]):
        if user.op_type == "Mul":
            yield user
        if depth and user.op_type in ("Mul", "Add"):
            yield from _products_after(user, depth - 1)
