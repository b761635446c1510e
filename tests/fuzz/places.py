"""Where something can be changed in a graph, and what odd numbers and names there are."""

from __future__ import annotations

import random
from collections.abc import Iterator

import onnx
from onnx import TensorProto

Rng = random.Random
HUGE = (-1, 0, 1, 2, 7, 1 << 31, (1 << 31) - 1, 1 << 40, 1 << 62, -(1 << 63), (1 << 63) - 1)
NAMES = (
    "",
    "x" * 70_000,
    "\x1b[31m\x1b]0;title\x07red",
    "line\nbreak\r\ttab",
    "../../etc/passwd",
    "/etc/passwd",
    "\x00nul",
    "[bold]markup[/]",
    "\u202egnp.exe",
    "\U0001d518\U0001d52b çødé",
    "%s%n{0}{x}$(id)",
    "input_ids",
    "logits",
)
DOMAINS = ("", "ai.onnx", "com.microsoft", "local", "spq", "ai.onnx.ml", "x\x1b[0m")
TYPES = tuple(TensorProto.DataType.values())


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_of(attribute.g)
            for inner in attribute.graphs:
                yield from graphs_of(inner)


def nodes_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    found = [node for graph in graphs_of(model.graph) for node in graph.node]
    return found + [node for function in model.functions for node in function.node]


def values_of(model: onnx.ModelProto) -> list[str]:
    return [name for node in nodes_of(model) for name in (*node.input, *node.output)] or [""]


def some_node(rng: Rng, model: onnx.ModelProto) -> onnx.NodeProto:
    nodes = nodes_of(model)
    return rng.choice(nodes) if nodes else model.graph.node.add()


def some_tensor(rng: Rng, model: onnx.ModelProto) -> onnx.TensorProto:
    tensors = [tensor for graph in graphs_of(model.graph) for tensor in graph.initializer]
    tensors += [a.t for node in nodes_of(model) for a in node.attribute if a.HasField("t")]
    return rng.choice(tensors) if tensors else model.graph.initializer.add()
