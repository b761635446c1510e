"""Decoders whose layers lie inside of an If, a Loop or a Scan, as exporters and mergers write them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

Nest = Callable[[ModelProto], ModelProto]


def _body(model: ModelProto, name: str, inputs: list[str]) -> GraphProto:
    """All nodes as the body of another node, of which the constants stay outside."""
    kinds = [
        helper.make_tensor_value_info(i, TensorProto.BOOL if "cond" in i else TensorProto.INT64, []) for i in inputs
    ]
    result = helper.make_tensor_value_info(f"{name}.logits", TensorProto.FLOAT, None)
    last = helper.make_node("Identity", ["logits"], [f"{name}.logits"], name=f"{name}.last")
    return helper.make_graph([*model.graph.node, last], name, kinds, [result])


def _around(model: ModelProto, nodes: list[object], constants: dict[str, object]) -> ModelProto:
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in constants.items())
    return model


def merged(model: ModelProto) -> ModelProto:
    """Both branches of an If that an input chooses: what optimum calls decoder_model_merged."""
    one, other = (_body(model, name, []) for name in ("then", "else"))
    choice = helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])
    chosen = helper.make_node("If", ["use_cache_branch"], ["logits"], "optimum::if", then_branch=one, else_branch=other)
    model.graph.input.append(choice)
    return _around(model, [chosen], {})


def in_if(model: ModelProto) -> ModelProto:
    """The same, chosen by a constant."""
    one, other = (_body(model, name, []) for name in ("then", "else"))
    chosen = helper.make_node("If", ["choice"], ["logits"], name="choose", then_branch=one, else_branch=other)
    return _around(model, [chosen], {"choice": True})


def in_loop(model: ModelProto) -> ModelProto:
    """The body of a Loop that runs once."""
    body = _body(model, "body", ["step", "cond"])
    body.node.append(helper.make_node("Identity", ["cond"], ["again.cond"], name="again"))
    body.output.insert(0, helper.make_tensor_value_info("again.cond", TensorProto.BOOL, []))
    loop = helper.make_node("Loop", ["once", "true"], ["all"], name="layers", body=body)
    first = helper.make_node("Squeeze", ["all", "axis"], ["logits"], name="first")
    return _around(model, [loop, first], {"once": np.int64(1), "true": True, "axis": np.array([0], np.int64)})


def in_scan(model: ModelProto) -> ModelProto:
    """The body of a Scan over one step."""
    body = _body(model, "body", ["step"])
    scan = helper.make_node("Scan", ["steps"], ["all"], name="layers", body=body, num_scan_inputs=1)
    first = helper.make_node("Squeeze", ["all", "axis"], ["logits"], name="first")
    return _around(model, [scan, first], {"steps": np.zeros(1, np.int64), "axis": np.array([0], np.int64)})
