"""Sound graphs of a few kilobytes that cases begin with: one of every kind that the product knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from spq_graph.passes.forms.int8_function import Int8Kind, int8_matmul_function
from spq_graph.passes.numbers.fp8 import E4M3
from spq_graph.passes.numbers.int8 import pack_int8_panels
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.decoders import VOCABULARY, write_decoder
from tests.support.graphs import CONTRIB, Glu
from tests.support.nested import in_loop, in_scan, merged
from tests.support.operator_files import Product, random_codes
from tests.unit.passes.find.test_quantized import int4

Seed = Callable[[], onnx.ModelProto]


def _plain(**how: bool) -> onnx.ModelProto:
    with TemporaryDirectory() as folder:
        return onnx.load(write_decoder(Path(folder) / "model.onnx", layers=1, **how))  # type: ignore[arg-type]


def _bits() -> onnx.ModelProto:
    model = _plain()
    int4(model, "lm_head")
    int4(model, "layers.0.mlp.down_proj")
    model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return model


def _quantizers() -> onnx.ModelProto:
    """A weight in codes, and a pair of quantizers on what its product reads."""
    model = _plain()
    index, node = next((i, n) for i, n in enumerate(model.graph.node) if n.name == "layers.0.mlp.down_proj")
    weight = next(t for t in model.graph.initializer if t.name == node.input[1])
    codes = np.clip(np.rint(numpy_helper.to_array(weight) / 0.01), -127, 127).astype(np.int8)
    for name, array in (("codes", codes), ("scale", np.float32(0.01)), ("zero", np.int8(0))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    value, node.input[0], node.input[1] = node.input[0], "activation", "weight"
    for made in (
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["weight"], name="weight.dq"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["activation"], name="dq"),
        helper.make_node("QuantizeLinear", [value, "scale", "zero"], ["q"], name="q"),
    ):
        model.graph.node.insert(index, made)
    return model


def _functions() -> onnx.ModelProto:
    """The activation in a function of the model's own, which calls another."""
    model = _plain()
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("local", 1)]
    inner = helper.make_function("local", "Inner", ["x"], ["y"], [helper.make_node("Sigmoid", ["x"], ["y"])], opsets)
    body = [
        helper.make_node("Inner", ["x"], ["s"], domain="local"),
        helper.make_node("Mul", ["x", "s"], ["y"], name="silu"),
    ]
    model.functions.extend([inner, helper.make_function("local", "Silu", ["x"], ["y"], body, opsets)])
    model.opset_import.append(helper.make_opsetid("local", 1))
    for node in model.graph.node:
        if node.op_type == "Sigmoid":
            node.op_type, node.domain = "Silu", "local"
    return model


def _branches() -> onnx.ModelProto:
    """The head in both branches of an If."""
    model = _plain()
    head = model.graph.node.pop()
    inner = [
        helper.make_graph(
            [helper.make_node("MatMul", list(head.input), [f"{name}.out"], name=f"{name}.MatMul")],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, ["b", "s", VOCABULARY])],
        )
        for name in ("then", "else")
    ]
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    model.graph.node.append(
        helper.make_node("If", ["condition"], ["logits"], name="if", then_branch=inner[0], else_branch=inner[1])
    )
    return model


def _fused() -> onnx.ModelProto:
    """What ONNX Runtime's optimizer fuses around weights."""
    model = _plain()
    for node in model.graph.node:
        if node.name == "layers.0.mlp.down_proj":
            node.op_type, node.domain = "FusedMatMul", CONTRIB
            node.attribute.append(helper.make_attribute("alpha", 0.5))
    head = model.graph.node[-1]
    value, head.input[0] = head.input[0], "biased"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(32, np.float32), "bias_of_gelu"))
    model.graph.node.insert(
        len(model.graph.node) - 1,
        helper.make_node("BiasGelu", [value, "bias_of_gelu"], ["biased"], name="gelu", domain=CONTRIB),
    )
    model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return model


def _computed() -> onnx.ModelProto:
    """A weight that the graph computes, and one cut out of another."""
    model = _plain()
    for name, op_type, more in (("q_proj", "Mul", np.float32(2)), ("k_proj", "Expand", np.array([32, 32]))):
        node = next(n for n in model.graph.node if n.name.endswith(name))
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(more), f"{name}.more"))
        made = helper.make_node(op_type, [node.input[1], f"{name}.more"], [f"{name}.made"], name=f"{name}.made")
        node.input[1] = f"{name}.made"
        model.graph.node.insert(0, made)
    return model


def _ours() -> onnx.ModelProto:
    """A file of ours: a call of the FP8 operator with its function, and the remarks that quantizing leaves."""
    model = _plain()
    node = next(n for n in model.graph.node if n.name == "layers.0.mlp.down_proj")
    rows, columns = next(t for t in model.graph.initializer if t.name == node.input[1]).dims
    made = Product(random_codes(rows, columns), activations=E4M3).model()
    call = made.graph.node[0]
    call.input[0], call.output[0], call.name = node.input[0], node.output[0], node.name
    for key, value in (("spq_graph.precision", "fp8_e4m3"), ("spq_graph.reason", "by hand")):
        call.metadata_props.add(key=key, value=value)
    node.CopyFrom(call)
    model.graph.initializer.extend(made.graph.initializer)
    model.functions.extend(made.functions)
    model.opset_import.append(helper.make_opsetid("spq", 1))
    return model


def _by_token() -> onnx.ModelProto:
    """The same of the INT8 operator, with a range by token and an outlier branch."""
    model, kind = _plain(), Int8Kind(by_token=True, branch=True)
    node = next(n for n in model.graph.node if n.name == "layers.0.mlp.down_proj")
    weight = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == node.input[1]))
    rows, columns = weight.shape
    codes = np.clip(np.rint(weight / 0.01), -127, 127).astype(np.int8)
    held = {
        "B": pack_int8_panels(codes),
        "b_scale": np.full(columns, 0.01, np.float32),
        "bias": np.zeros(1, np.float32),
        "channels": np.array([1, 5], np.int64),
        "rows": weight[[1, 5]].astype(np.float16),
    }
    node.op_type, node.domain, node.input[1:] = kind.op_type, "spq", list(held)
    node.attribute.extend(helper.make_attribute(name, size) for name, size in (("K", rows), ("N", columns)))
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in held.items())
    model.functions.append(ir.to_proto(int8_matmul_function(kind, model.opset_import[0].version)))
    model.opset_import.append(helper.make_opsetid("spq", 1))
    model.ir_version = max(model.ir_version, 9)
    return model


SEEDS: dict[str, Seed] = {
    "plain": _plain,
    "external": _plain,
    "cache": lambda: _plain(cache=True, positions=True),
    "bits": _bits,
    "quantizers": _quantizers,
    "functions": _functions,
    "branches": _branches,
    "ours": _ours,
    "by_token": _by_token,
    "merged": lambda: merged(_plain()),
    "loop": lambda: in_loop(_plain()),
    "scan": lambda: in_scan(_plain()),
    "fused": _fused,
    "computed": _computed,
    "no_glu": lambda: _plain(glu=False),
    "half": lambda: decoder(Decoder(layers=1), dtype=np.float16),
    "packed": lambda: decoder(Decoder(glu=Glu("gelu_tanh", "gemm", "split", bias=True), layers=1, attention="packed")),
    "erf": lambda: decoder(Decoder(glu=Glu("erf_half_inside", "cast", "gather"), layers=1), naming="torchscript"),
    "contrib": lambda: decoder(Decoder(glu=Glu("quick_gelu"), layers=1, attention="GroupQueryAttention", capped=True)),
    "attention": lambda: decoder(Decoder(glu=Glu("relu_squared"), layers=1, attention="MultiHeadAttention")),
    "experts": lambda: decoder(Decoder(layers=1, experts=3), naming="anonymous"),
    "routed": lambda: decoder(Decoder(layers=1, experts=3, routed=True)),
    "grouped": lambda: decoder(Decoder(layers=1, kv_heads=1, tied=True, attention="qk_norm"), opset=13),
}
