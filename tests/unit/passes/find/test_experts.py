"""Experts whose weights lie in one stack: their GLUs are found, and every product is listed with what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.find.identify import Identified, identify, require_glu
from spq_graph.terms.site import Role
from tests.support.graphs import ACTIVATIONS, CONTRIB, Builder, Glu, Naming, write_glu

FLOAT = onnx.TensorProto.FLOAT
EXPERTS, WIDTH, INNER, CHOSEN = 3, 4, 6, 2


def found_in(b: Builder) -> Identified:
    model = b.model({"x": (FLOAT, ["n", WIDTH])}, {"y": (FLOAT, ["n", WIDTH])})
    onnx.checker.check_model(model)
    graph = ir.from_proto(model)
    Canonicalize()(graph)
    return identify(graph)


def product(b: Builder, value: str, chosen: str, rows: int, columns: int, *, weight_first: bool) -> str:
    """Each row of `value` times the weights of its expert."""
    axis = b.const([2 if weight_first else 1], np.int64)
    apart = b.op("Unsqueeze", value, axis)
    stack = b.random(EXPERTS, columns, rows) if weight_first else b.random(EXPERTS, rows, columns)
    if weight_first:
        weights = b.op("GatherND", b.const(stack), b.op("Unsqueeze", chosen, b.const([1], np.int64)))
    else:
        weights = b.op("Gather", b.const(stack), chosen, axis=0)
    both = (weights, apart) if weight_first else (apart, weights)
    return str(b.op("Squeeze", b.op("MatMul", *both), axis))


def routed_layer(b: Builder, value: str, path: str, *, weight_first: bool, packed: bool) -> str:
    """What `batched_mm` is exported to; returns value + experts(value)."""
    b.module = f"{path}.gate"
    best, chosen = b.op(
        "TopK", b.op("Softmax", b.linear(value, WIDTH, EXPERTS), axis=-1), b.const([CHOSEN], np.int64), outputs=2
    )
    b.module = f"{path}.experts"
    flat = b.op("Reshape", chosen, b.const([-1], np.int64))
    repeats = b.const([1, CHOSEN, 1], np.int64)
    many = b.op("Expand", b.op("Unsqueeze", value, b.const([1], np.int64)), repeats)
    many = b.op("Reshape", many, b.const([-1, WIDTH], np.int64))
    if packed:
        pair = product(b, many, flat, WIDTH, 2 * INNER, weight_first=weight_first)
        gate, up = b.op("Split", pair, b.const([INNER, INNER], np.int64), outputs=2, axis=-1)
    else:
        gate, up = (product(b, many, flat, WIDTH, INNER, weight_first=weight_first) for _ in range(2))
    inner = b.op("Mul", ACTIVATIONS["silu"].write(b, gate), up)
    down = product(b, inner, flat, INNER, WIDTH, weight_first=weight_first)
    down = b.op("Mul", down, b.op("Reshape", best, b.const([-1, 1], np.int64)))
    apart = b.op("Reshape", down, b.const([-1, CHOSEN, WIDTH], np.int64))
    return str(b.op("Add", value, b.op("ReduceSum", apart, b.const([1], np.int64), keepdims=0)))


def stacked_model(naming: Naming, *, weight_first: bool, packed: bool) -> Builder:
    b = Builder(naming=naming)
    value = "x"
    for layer in range(2):
        path = f"model.layers.{layer}.mlp"
        value = routed_layer(b, value, path, weight_first=weight_first, packed=packed)
    b.op("Identity", value, outputs=["y"])
    return b


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("weight_first", [True, False])
@pytest.mark.parametrize("naming", ["dynamo", "anonymous"])
def test_gathered_by_token(naming: Naming, weight_first: bool, packed: bool) -> None:
    found = found_in(stacked_model(naming, weight_first=weight_first, packed=packed))
    require_glu(found, "here")
    assert [(block.kind, block.layer) for block in found.blocks] == [("swiglu", 0), ("swiglu", 1)]
    assert [(site.role, site.layer) for site in found.sites] == [(Role.ROUTER, 0), (Role.ROUTER, 1)]
    roles = ["expert_gate_up"] if packed else ["expert_gate", "expert_up"]
    wanted = sorted(f"{role} of layer {layer}" for layer in (0, 1) for role in [*roles, "expert_down"])
    assert sorted(u.reason.split(":")[0] for u in found.unmatched) == wanted
    assert all("which weights a token gets is known only at run time" in u.reason for u in found.unmatched)
    assert all(f": {EXPERTS} experts, weights [" in u.reason for u in found.unmatched)


@pytest.mark.parametrize("naming", ["dynamo", "anonymous"])
def test_tokens_sorted_by_expert_and_cut_into_pieces(naming: Naming) -> None:
    """What our own export gives; numbered also where no name states a number."""
    b = Builder(naming=naming)
    value = "x"
    for layer in range(2):
        path = f"model.layers.{layer}.mlp"
        b.module = f"{path}.gate"
        _, chosen = b.op("TopK", b.linear(value, WIDTH, EXPERTS), b.const([1], np.int64), outputs=2)
        b.module = f"{path}.experts"
        flat = b.op("Reshape", chosen, b.const([-1], np.int64))
        _, order = b.op("TopK", flat, b.op("Shape", flat), outputs=2, largest=0)
        mine = b.op("Equal", b.op("Unsqueeze", flat, b.const([1], np.int64)), b.const(range(EXPERTS), np.int64))
        counts = b.op("ReduceSum", b.op("Cast", mine, to=onnx.TensorProto.INT64), b.const([0], np.int64), keepdims=0)
        pieces = b.op("Split", b.op("Gather", value, order, axis=0), counts, outputs=EXPERTS, axis=0)
        glu = Glu(width=WIDTH, inner=INNER)
        done = [write_glu(b, piece, glu, f"{path}.experts.{number}") for number, piece in enumerate(pieces)]
        b.module = f"{path}.experts"
        _, back = b.op("TopK", order, b.op("Shape", order), outputs=2, largest=0)
        value = b.op("Add", value, b.op("Gather", b.op("Concat", *done, axis=0), back, axis=0))
    b.op("Identity", value, outputs=["y"])
    found = found_in(b)
    assert [(block.kind, block.layer) for block in found.blocks] == [
        ("swiglu", n) for n in (0, 1) for _ in range(EXPERTS)
    ]
    for role in (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN):
        numbers = [(site.layer, site.expert) for site in found.sites if site.role is role]
        assert numbers == [(layer, expert) for layer in (0, 1) for expert in range(EXPERTS)]
    assert [site.layer for site in found.sites if site.role is Role.ROUTER] == [0, 1]
    assert found.unmatched == []


def test_every_expert_multiplies_every_token() -> None:
    b = Builder(naming="dynamo", module="model.layers.4.mlp.experts")
    value = b.op("Unsqueeze", "x", b.const([0], np.int64))
    gate, up = (b.op("MatMul", value, b.const(b.random(EXPERTS, WIDTH, INNER))) for _ in range(2))
    inner = b.op("Mul", ACTIVATIONS["silu"].write(b, gate), up)
    down = b.op("MatMul", inner, b.const(b.random(EXPERTS, INNER, WIDTH)))
    b.op("ReduceSum", down, b.const([0], np.int64), keepdims=0, outputs=["y"])
    found = found_in(b)
    assert [(block.kind, block.layer) for block in found.blocks] == [("swiglu", 4)]
    assert sorted(u.reason.split(":")[0] for u in found.unmatched) == [
        f"{role} of layer 4" for role in ("expert_down", "expert_gate", "expert_up")
    ]
    assert all("one product takes all experts' weights at once" in u.reason for u in found.unmatched)


def fused_layer(
    b: Builder, value: str, path: str, op_type: str = "MoE", *, third: bool = False, **attributes: Any
) -> str:
    """A router and ONNX Runtime's operator behind it; returns value + experts(value)."""
    b.module = path
    chances = b.linear(value, WIDTH, EXPERTS)
    into, out_of = (b.const(b.random(EXPERTS, *shape)) for shape in ((WIDTH, 2 * INNER), (INNER, WIDTH)))
    inputs = {"MoE": [into, "", out_of], "QMoE": [into, b.const([1.0]), "", out_of, b.const([1.0])]}[op_type]
    up = ["", into] if third else []
    return str(b.op("Add", value, b.op(op_type, value, chances, *inputs, *up, domain=CONTRIB, k=2, **attributes)))


@pytest.mark.parametrize(
    ("op_type", "third", "activation", "kind"),
    [
        ("MoE", False, {"activation_type": "swiglu", "swiglu_fusion": 1}, "swiglu"),
        ("MoE", True, {"activation_type": "silu"}, "swiglu"),
        ("MoE", True, {"activation_type": "gelu"}, "geglu"),
        ("QMoE", True, {}, "reglu"),
        ("QMoE", False, {"activation_type": "swiglu", "swiglu_fusion": 2}, "swiglu"),
        ("MoE", False, {"activation_type": "gelu"}, ""),
        ("QMoE", False, {}, ""),
    ],
)
def test_fused_into_one_operator(op_type: str, third: bool, activation: dict[str, Any], kind: str) -> None:
    """The router in front of it is one all the same, and stays in high precision."""
    b = Builder(naming="torchscript")
    out = fused_layer(b, "x", "model.layers.7.mlp", op_type, third=third, **activation)
    b.op("Identity", out, outputs=["y"])
    found = found_in(b)
    assert [site.role for site in found.sites] == [Role.ROUTER]
    assert [(block.kind, block.layer) for block in found.blocks] == ([(kind, 7)] if kind else [])
    [entry] = found.unmatched
    gate = f"a {kind} each" if kind else "without a gate"
    held = f"{op_type} of layer 7 holds all projections of 3 experts, {gate}, in one operator"
    assert entry.reason == f"{held}; it stays as it is"


def test_fused_and_plain_layers_are_numbered_together() -> None:
    """As in DeepSeek: a plain GLU first; and no name states a layer."""
    b = Builder()
    value = b.op("Add", "x", write_glu(b, "x", Glu(width=WIDTH, inner=INNER)))
    for _ in range(2):
        value = fused_layer(b, value, "", activation_type="swiglu", swiglu_fusion=1)
    value = b.op("Add", value, write_glu(b, value, Glu(width=WIDTH, inner=INNER)))
    b.op("Identity", value, outputs=["y"])
    found = found_in(b)
    assert [block.layer for block in found.blocks] == [0, 1, 2, 3]
    assert [(site.role, site.layer) for site in found.sites if site.role is Role.ROUTER] == [
        (Role.ROUTER, 1),
        (Role.ROUTER, 2),
    ]
    assert sorted(u.reason.split(" holds")[0] for u in found.unmatched) == ["MoE of layer 1", "MoE of layer 2"]


def test_fused_with_weights_that_are_computed() -> None:
    b = Builder(naming="torchscript", module="model.layers.0.mlp")
    stacks = [b.op("Abs", b.const(b.random(EXPERTS, *shape))) for shape in ((WIDTH, INNER), (INNER, WIDTH))]
    b.op("MoE", "x", b.linear("x", WIDTH, EXPERTS), stacks[0], "", stacks[1], domain=CONTRIB, outputs=["y"])
    [entry] = found_in(b).unmatched
    assert entry.reason.startswith("MoE of layer 0 holds all projections of its experts, without a gate")


def test_the_best_expert_by_argmax() -> None:
    b = Builder(naming="dynamo", module="model.layers.0.mlp.router")
    best = b.op("ArgMax", b.op("Softmax", b.linear("x", WIDTH, EXPERTS), axis=-1), axis=-1, keepdims=1)
    b.op("Mul", "x", b.op("Cast", best, to=FLOAT), outputs=["y"])
    assert [site.role for site in found_in(b).sites] == [Role.ROUTER]


@pytest.mark.parametrize("chosen", [1, [1], [1, 2]], ids=str)
def test_cut_out_by_a_constant(chosen: int | list[int]) -> None:
    """One expert is a matrix like any other; a stack of them, be it of one that adds an axis, is told."""
    b = Builder()
    weight = b.op("Gather", b.const(b.random(EXPERTS, WIDTH, WIDTH)), b.const(chosen, np.int64), axis=0)
    b.op("MatMul", "x", weight, outputs=["y"])
    found = found_in(b)
    if chosen == 1:
        assert [site.shape for site in found.sites] == [(WIDTH, WIDTH)]
        assert found.unmatched == []
        return
    [entry] = found.unmatched
    assert "a product of experts, outside of any GLU" in entry.reason
    assert "picks them as a stack" in entry.reason


def test_a_gate_of_one_number_weighs_a_shared_expert() -> None:
    b = Builder(naming="dynamo")
    out = write_glu(b, "x", Glu(width=WIDTH, inner=INNER), "model.layers.0.mlp.shared_expert")
    b.module = "model.layers.0.mlp.shared_expert_gate"
    weight = b.op("Sigmoid", b.linear("x", WIDTH, 1))
    b.op("Add", "x", b.op("Mul", weight, out), outputs=["y"])
    found = found_in(b)
    assert {site.key.rsplit(".", 1)[-1]: site.role for site in found.sites}["shared_expert_gate"] is Role.ROUTER
    assert (len(found.blocks), found.unmatched) == (1, [])


def test_glus_beside_each_other_without_a_router_are_no_experts() -> None:
    b = Builder()
    parts = [write_glu(b, "x", Glu(width=WIDTH, inner=INNER)) for _ in range(2)]
    b.op("Add", *parts, outputs=["y"])
    found = found_in(b)
    assert [site.expert for site in found.sites] == [None] * 6
    assert {site.role for site in found.sites} == {Role.GLU_GATE, Role.GLU_UP, Role.GLU_DOWN}


@pytest.mark.parametrize("name", ["tanh_half_gate", "tanh_half_inside", "erf_half_last"])
def test_an_activation_of_one_branch_is_no_near_miss(name: str) -> None:
    """As in GPT-2 and Phi-2: a product of two values that both come from one projection."""
    b = Builder()
    hidden = b.op("Reshape", b.linear("x", WIDTH, INNER, bias=True), b.const([-1, INNER], np.int64))
    b.op("Identity", b.linear(ACTIVATIONS[name].write(b, hidden), INNER, WIDTH), outputs=["y"])
    found = found_in(b)
    assert (found.blocks, found.unmatched) == ([], [])
