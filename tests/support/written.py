"""Graphs written in ONNX's own text."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from spq_graph.passes.canon.canonicalize import Canonicalize


def parse(text: str, *, opset: int = 21, ir_version: int = 10) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["":{opset}]> {text}')


def canonical(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    Canonicalize()(graph)
    return graph
