"""What is found in a graph that a test has just written."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import onnx_ir as ir

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.find.identify import Identified, identify
from tests.support.graphs import ACTIVATIONS, Builder

FLOAT = onnx.TensorProto.FLOAT
Write = Callable[[Builder], str]


def found_in(model: onnx.ModelProto) -> Identified:
    onnx.checker.check_model(model)
    graph = ir.from_proto(model)
    Canonicalize()(graph)
    return identify(graph)


def roles(found: Identified) -> list[str]:
    return [site.role.value for site in found.sites]


def mlp(write: Callable[[Builder, str, str], str], opset: int = 21) -> Identified:
    """What is found where `write` makes the input of down from gate and up."""
    b = Builder(opset)
    gate, up = b.linear("x", 4, 6), b.linear("x", 4, 6)
    b.op("Add", "x", b.linear(write(b, gate, up), 6, 4), outputs=["y"])
    return found_in(b.model({"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}))


def silu_product(b: Builder, gate: str, up: str) -> str:
    return str(b.op("Mul", ACTIVATIONS["silu"].write(b, gate), up))
