"""GLU patterns: every way to write one is found, with the right branches, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.find.patterns import GluMatch, find_glus
from tests.support.graphs import ACTIVATIONS, Builder

FLOAT = 1
SHAPE = ["tokens", 4]
Write = Callable[[Builder], str]


def matches(write: Write, opset: int = 21) -> list[GluMatch]:
    """What is found in a graph over g and u, the branches of a GLU, whose output is what `write` returns."""
    b = Builder(opset)
    b.op("Identity", write(b), outputs=["y"])
    graph = ir.from_proto(b.model({"g": (FLOAT, SHAPE), "u": (FLOAT, SHAPE)}, {"y": (FLOAT, SHAPE)}))
    Canonicalize()(graph)
    return list(find_glus(graph))


@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str, gate_first: bool) -> None:
    activation = ACTIVATIONS[name]

    def write(b: Builder) -> str:
        activated = activation.write(b, "g")
        return str(b.op("Mul", *((activated, "u") if gate_first else ("u", activated))))

    [match] = matches(write, max(13, activation.opset))
    assert (match.kind, match.gate.name, match.up.name) == (activation.kind, "g", "u")


def other_associations() -> dict[str, Write]:
    return {
        "(g u) s": lambda b: b.op("Mul", b.op("Mul", "g", "u"), b.op("Sigmoid", "g")),
        "s (u g)": lambda b: b.op("Mul", b.op("Sigmoid", "g"), b.op("Mul", "u", "g")),
        "g (s u)": lambda b: b.op("Mul", "g", b.op("Mul", b.op("Sigmoid", "g"), "u")),
        "(u s) g": lambda b: b.op("Mul", b.op("Mul", "u", b.op("Sigmoid", "g")), "g"),
    }


@pytest.mark.parametrize("name", other_associations())
def test_other_associations(name: str) -> None:
    [match] = matches(other_associations()[name])
    assert (match.kind, match.gate.name, match.up.name) == ("swiglu", "g", "u")
    reader = match.product.outputs[0].uses()[0].node
    assert reader.op_type == "Identity"  # the outer product, not the inner one


@pytest.mark.parametrize("between", ["Identity", "Cast"])
def test_moves_between_activation_and_product(between: str) -> None:
    def write(b: Builder) -> str:
        silu = b.op("Mul", "g", b.op("Sigmoid", "g"))
        moved = b.op(between, silu, **({"to": FLOAT} if between == "Cast" else {}))
        return str(b.op("Mul", moved, "u"))

    assert [match.kind for match in matches(write)] == ["swiglu"]


def test_an_activation_that_others_read_too() -> None:
    def write(b: Builder) -> str:
        silu = b.op("Mul", "g", b.op("Sigmoid", "g"))
        return str(b.op("Add", b.op("Mul", silu, "u"), silu))

    assert [match.kind for match in matches(write)] == ["swiglu"]


def _gelu_with(half: float, one: float, inner: str) -> Write:
    def write(b: Builder) -> str:
        squashed = b.op("Add", b.op("Erf", inner), b.number(one))
        return str(b.op("Mul", b.op("Mul", b.op("Mul", "g", b.number(half)), squashed), "u"))

    return write


def no_glus() -> dict[str, Write]:
    return {
        "plain product": lambda b: b.op("Mul", "g", "u"),
        "silu alone": lambda b: b.op("Mul", "g", b.op("Sigmoid", "g")),
        "scaled silu alone": lambda b: ACTIVATIONS["silu_scaled"].write(b, "g"),
        "gelu alone": lambda b: ACTIVATIONS["erf_half_last"].write(b, "g"),
        "squared relu": lambda b: b.op("Mul", b.op("Relu", "g"), b.op("Relu", "g")),
        "cubed relu": lambda b: b.op("Mul", b.op("Pow", b.op("Relu", "g"), b.number(3.0)), "u"),
        "relu times its input": lambda b: b.op("Mul", b.op("Relu", "g"), "g"),
        "silu times a constant": lambda b: b.op("Mul", ACTIVATIONS["silu"].write(b, "g"), b.number(2.0)),
        "silu times a vector": lambda b: b.op("Mul", ACTIVATIONS["silu"].write(b, "g"), b.const(b.random(4))),
        "gelu times a constant": lambda b: b.op("Mul", ACTIVATIONS["gelu"].write(b, "g"), b.number(2.0)),
        "silu times a shift of its input": lambda b: b.op(
            "Mul", ACTIVATIONS["silu"].write(b, "g"), b.op("Add", "g", b.number(1.0))
        ),
        "silu plus up": lambda b: b.op("Add", ACTIVATIONS["silu"].write(b, "g"), "u"),
        "elu": lambda b: b.op("Mul", b.op("Elu", "g"), "u"),
        "erf with another half": _gelu_with(0.7, 1.0, "g"),
        "erf with another one": _gelu_with(0.5, 2.0, "g"),
        "erf of something else": _gelu_with(0.5, 1.0, "u"),
        "tanh gate": lambda b: b.op("Mul", b.op("Tanh", "g"), "u"),
        "soft cap": lambda b: b.op("Mul", b.op("Tanh", b.op("Div", "g", b.number(30.0))), b.number(30.0)),
    }


@pytest.mark.parametrize("name", no_glus())
def test_nothing_else(name: str) -> None:
    assert matches(no_glus()[name]) == []


def test_many_blocks_in_order() -> None:
    def write(b: Builder) -> str:
        value = "u"
        for _ in range(5):
            value = b.op("Mul", ACTIVATIONS["silu"].write(b, "g"), b.op("Neg", value))
        return value

    found = matches(write)
    order = {node: index for index, node in enumerate(found[0].product.graph or [])}
    assert len(found) == 5
    assert np.all(np.diff([order[match.product] for match in found]) > 0)
