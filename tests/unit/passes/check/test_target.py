"""Every one of a target's rules, broken on purpose in a graph that keeps it, is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.documents.plan import Plan
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.check.target import TARGET_RULES, VerifyTarget, broken_rules, refuse_foreign
from spq_graph.terms.errors import CheckError, GraphError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import PROFILES, Target
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu
from tests.support.inserting import plan_for


def compiled(folder: Path, target: Target, opset: int = 21) -> tuple[ir.Model, Plan]:
    """A decoder with integer sites, an FP8 site where the target has such, and one in half precision."""
    path = folder / "model.onnx"
    proto = decoder(Decoder(layers=1, glu=Glu(width=32, inner=32)), naming="dynamo")
    proto.opset_import[0].version = opset
    onnx.save(proto, path)
    wanted = {Role.GLU_DOWN: Precision.FP8_E4M3, Role.ATTN_O: Precision.W8A8_BLOCK, Role.LM_HEAD: Precision.FP32}

    def choose(site: Site) -> Precision:
        return PROFILES[target].settle(wanted.get(site.role, Precision.INT8))[0]

    plan = plan_for(path, token_feeds(), choose, target=target)
    return apply_plan(path, plan), plan


def node(model: ir.Model, op_type: str) -> ir.Node:
    return next(n for n in model.graph if n.op_type == op_type)


def set_constant(value: ir.Value | None, tensor: ir.TensorProtocol) -> None:
    assert value is not None
    value.const_value = tensor
    value.dtype, value.shape = tensor.dtype, ir.Shape(tensor.shape.numpy())


def foreign(model: ir.Model) -> None:
    node(model, "MatMul").domain = "com.example"


def function(model: ir.Model) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 21})
    model.functions[("com.example", "F", "")] = ir.Function("com.example", "F", graph=graph, attributes=[])


def old_opset(model: ir.Model) -> None:
    model.graph.opset_imports[""] = 12


def old_for_blocks(model: ir.Model) -> None:
    model.graph.opset_imports[""] = 20


def zero_point(kind: type[np.generic], value: int) -> Callable[[ir.Model], None]:
    def tamper(model: ir.Model) -> None:
        set_constant(node(model, "QuantizeLinear").inputs[2], ir.tensor(np.array(value, kind)))

    return tamper


def many_scales(model: ir.Model) -> None:
    set_constant(node(model, "QuantizeLinear").inputs[1], ir.tensor(np.ones(32, np.float32)))


def computed_scale(model: ir.Model) -> None:
    quantize = node(model, "QuantizeLinear")
    quantize.replace_input_with(1, model.graph.inputs[0])


def wrong_axis(model: ir.Model) -> None:
    for found in model.graph:
        if found.op_type == "DequantizeLinear" and "axis" in found.attributes:
            found.attributes["axis"] = ir.AttrInt64("axis", 0)
            found.attributes.pop("block_size", None)
            scale = found.inputs[1]
            assert scale is not None
            set_constant(scale, ir.tensor(np.ones(32, np.float32)))
            return


def fp8_channels(model: ir.Model) -> None:
    for found in model.graph:
        weight = found.inputs[0] if found.op_type == "DequantizeLinear" else None
        if weight is not None and weight.dtype is ir.DataType.FLOAT8E4M3FN and weight.const_value is not None:
            set_constant(found.inputs[1], ir.tensor(np.ones(32, np.float32)))


def dequantized(model: ir.Model) -> None:
    node(model, "MatMul").op_type = "DequantizeLinear"


def integer_product(model: ir.Model) -> None:
    node(model, "MatMul").op_type = "MatMulInteger"


def unsigned_weight(model: ir.Model) -> None:
    product = node(model, "MatMulInteger")
    set_constant(product.inputs[1], ir.tensor(np.ones((32, 32), np.uint8)))


def bfloat16(model: ir.Model) -> None:
    for value in node(model, "MatMul").inputs:
        assert value is not None
        value.dtype = ir.DataType.BFLOAT16


def two_types(model: ir.Model) -> None:
    value = node(model, "MatMul").inputs[1]
    assert value is not None
    value.dtype = ir.DataType.FLOAT16


def wrong_call(model: ir.Model) -> None:
    call = node(model, "Fp8MatMul")
    call.attributes["a_type"] = ir.AttrInt64("a_type", 18)


BROKEN: dict[str, tuple[Target, Callable[[ir.Model], None], str]] = {
    "operators": ("tensorrt", foreign, "is com.example::MatMul"),
    "operators portable": ("portable", foreign, "is com.example::MatMul"),
    "functions": ("openvino", function, "there is a function com.example::F"),
    "opset": ("cpu", old_opset, "opset 12 is older than 13"),
    "opset of FP8": ("tensorrt", old_opset, "opset 12 is older than 19"),
    "opset of blocks": ("openvino", old_for_blocks, "opset 20 is older than 21"),
    "unsigned on a signed target": ("tensorrt", zero_point(np.uint8, 0), "zero point of type uint8"),
    "signed on an unsigned target": ("cpu", zero_point(np.int8, 0), "zero point of type int8"),
    "zero point": ("tensorrt", zero_point(np.int8, 3), "a zero point that is not 0"),
    "zero point cuda": ("cuda", zero_point(np.int8, 3), "a zero point that is not 0"),
    "one scale": ("openvino", many_scales, "more than one scale for an activation"),
    "static": ("cpu", computed_scale, "a scale that is not constant"),
    "channels": ("tensorrt", wrong_axis, "scales along another axis"),
    "FP8 per tensor": ("tensorrt", fp8_channels, "a scale for each channel of an FP8 weight"),
    "no Q/DQ on CUDA": ("cuda", dequantized, "would dequantize before the product"),
    "no MatMulInteger": ("cpu", integer_product, "is a MatMulInteger"),
    "int8 by int8": ("cuda", unsigned_weight, "multiplies INT8 by UINT8"),
    "no bfloat16": ("openvino", bfloat16, "is a product in bfloat16"),
    "one type": ("tensorrt", two_types, "multiplies float by float16"),
    "calls": ("cpu", wrong_call, "attribute a_type must be 1, 17"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_named(tmp_path: Path, name: str) -> None:
    target, tamper, message = BROKEN[name]
    model, plan = compiled(tmp_path, target)
    assert broken_rules(model, PROFILES[target]) == []
    tamper(model)
    with pytest.raises(CheckError, match=message) as caught:
        VerifyTarget(plan)(model)
    assert f"not what target '{target}' takes" in str(caught.value)


@pytest.mark.parametrize("opset", [18, 19, 20])
@pytest.mark.parametrize("target", PROFILES)
def test_an_older_graph_is_taken_with_every_format_of_a_kept_site(tmp_path: Path, target: Target, opset: int) -> None:
    model, _ = compiled(tmp_path, target, opset)
    assert broken_rules(model, PROFILES[target]) == []


def test_every_rule_is_broken_above() -> None:
    assert len(TARGET_RULES) == 7


@pytest.mark.parametrize("target", ["tensorrt", "portable"])
def test_a_source_with_other_operators_is_refused(tmp_path: Path, target: Target) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1, attention="GroupQueryAttention", glu=Glu(width=32, inner=32))), path)
    plan = plan_for(path, token_feeds(), Precision.INT8, target=target)
    with pytest.raises(GraphError, match=r"1 com\.microsoft::GroupQueryAttention"):
        apply_plan(path, plan)
    refuse_foreign(ir.load(path), PROFILES["cpu"])
