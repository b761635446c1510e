"""Verify at FP8 sites: every way to tamper with a call, its constants or the operator's function is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.documents.plan import Plan
from spq_graph.passes.base.marks import DOMAIN, OP
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.check.outline import Outline, outline
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.forms.fp8_function import add_function, fp8_matmul_function
from spq_graph.passes.forms.insert import InsertPrecisions
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.inserting import plan_for

CHOSEN = {Role.GLU_DOWN: Precision.FP8_E4M3, Role.ATTN_O: Precision.W8FP8A16, Role.ATTN_Q: Precision.INT8}
Made = tuple[ir.Model, Plan, Outline]
WEIGHT = "its weight is not held as FP8 panels"
SCALE = "its activation has another scale than its range asks for"


def choose(site: Site) -> Precision:
    return CHOSEN.get(site.role, Precision.FP32)


def made(folder: Path, plan_as: Callable[[Site], Precision], dtype: type[np.generic] = np.float32) -> Made:
    path = folder / "model.onnx"
    onnx.save(decoder(Decoder(layers=1), dtype=dtype), path)
    plan = plan_for(path, token_feeds(), plan_as)
    model = load_graph(path)
    Canonicalize()(model)
    before = outline(model)
    InsertPrecisions(plan, plan.recipe.profile)(model)
    return model, plan, before


@pytest.fixture
def done(tmp_path: Path) -> Made:
    """A decoder layer with both kinds of FP8 sites, its plan, and its outline before."""
    return made(tmp_path, choose)


def down(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == OP and node.attributes["a_type"].as_int() == 17)


def output_projection(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == OP and node.attributes["a_type"].as_int() == 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_what_was_inserted_passes(tmp_path: Path, dtype: type[np.generic]) -> None:
    model, plan, before = made(tmp_path, lambda s: CHOSEN.get(s.role, Precision.FP8_E5M2), dtype)
    VerifyPlan(plan, before)(model)


def other_size(model: ir.Model) -> None:
    down(model).attributes["K"] = ir.AttrInt64("K", 13)


def other_format(model: ir.Model) -> None:
    down(model).attributes["a_type"] = ir.AttrInt64("a_type", 19)


def unknown_format(model: ir.Model) -> None:
    output_projection(model).attributes["a_type"] = ir.AttrInt64("a_type", 20)


def not_fast(model: ir.Model) -> None:
    output_projection(model).attributes["fast"] = ir.AttrInt64("fast", 0)


def constant(model: ir.Model, node: ir.Node, index: int, tensor: ir.TensorProtocol) -> None:
    value = ir.Value(name="tampered", type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(value)
    node.replace_input_with(index, value)


def other_activation_scale(model: ir.Model) -> None:
    constant(model, down(model), 3, ir.tensor(np.float32(0.5)))


def scale_where_there_is_none(model: ir.Model) -> None:
    constant(model, output_projection(model), 3, ir.tensor(np.float32(0.5)))


def no_activation_scale(model: ir.Model) -> None:
    down(model).resize_inputs(3)


def other_weight_scale(model: ir.Model) -> None:
    constant(model, down(model), 2, ir.tensor(np.ones(3, dtype=np.float32)))


def weight_of_another_type(model: ir.Model) -> None:
    panels = np.zeros((1, 6, 64), dtype=np.uint8)
    constant(model, down(model), 1, ir.Tensor(panels, dtype=ir.DataType.UINT8))


def weight_of_another_shape(model: ir.Model) -> None:
    constant(model, down(model), 1, ir.tensor(np.zeros((1, 7, 64)).astype(ir.DataType.FLOAT8E4M3FN.numpy())))


def weight_that_is_none(model: ir.Model) -> None:
    down(model).replace_input_with(1, model.graph.inputs[0])


def other_activation(model: ir.Model) -> None:
    node = down(model)
    node.replace_input_with(0, output_projection(model).inputs[0])


def back_to_matmul(model: ir.Model) -> None:
    node = down(model)
    node.op_type, node.domain = "MatMul", ""
    node.resize_inputs(2)
    constant(model, node, 1, ir.tensor(np.ones((12, 8), dtype=np.float32)))


def fp8_where_float_was_planned(model: ir.Model) -> None:
    head = next(node for node in model.graph if node.outputs[0].name == "logits")
    head.op_type, head.domain = OP, DOMAIN


def no_function(model: ir.Model) -> None:
    model.functions.clear()


def function_of_another_opset(model: ir.Model) -> None:
    model.functions.clear()
    function = fp8_matmul_function(20)
    model.functions[function.identifier()] = function


def function_that_does_something_else(model: ir.Model) -> None:
    function = model.functions[DOMAIN, OP, ""]
    next(node for node in function if node.op_type == "IsInf").op_type = "IsNaN"


TAMPERED: dict[str, tuple[Callable[[ir.Model], None], str]] = {
    "other size": (other_size, "down_proj: its node has other attributes"),
    "other format": (other_format, "down_proj: planned fp8_e4m3, found fp8_e5m2"),
    "unknown format": (unknown_format, "o_proj: its node has other attributes"),
    "not fast": (not_fast, "o_proj: its node has other attributes"),
    "other scale": (other_activation_scale, f"down_proj: {SCALE}"),
    "a scale where there is none": (scale_where_there_is_none, f"o_proj: {SCALE}"),
    "no scale": (no_activation_scale, f"down_proj: {SCALE}"),
    "other weight scale": (other_weight_scale, r"down_proj: its weight has no scales of shape \[8\]"),
    "weight of another type": (weight_of_another_type, f"down_proj: {WEIGHT}"),
    "weight of another shape": (weight_of_another_shape, f"down_proj: {WEIGHT}"),
    "weight that is no constant": (weight_that_is_none, f"down_proj: {WEIGHT}"),
    "other activation": (other_activation, "down_proj: it reads .*, the plan says"),
    "back to MatMul": (back_to_matmul, "down_proj: planned fp8_e4m3, found fp32"),
    "FP8 head": (fp8_where_float_was_planned, "lm_head: planned fp32, found w8fp8a16"),
    "no function": (no_function, "function spq::Fp8MatMul is missing"),
    "other opset": (function_of_another_opset, "function spq::Fp8MatMul is not ours"),
    "other function": (function_that_does_something_else, "function spq::Fp8MatMul is not ours"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_named(done: Made, name: str) -> None:
    model, plan, before = done
    VerifyPlan(plan, before)(model)
    tamper, message = TAMPERED[name]
    tamper(model)
    with pytest.raises(CheckError, match=message):
        VerifyPlan(plan, before)(model)


def test_function_that_nothing_calls(tmp_path: Path) -> None:
    model, plan, before = made(tmp_path, lambda s: Precision.INT8)
    VerifyPlan(plan, before)(model)
    add_function(model)
    with pytest.raises(CheckError, match="there, but nothing calls it"):
        VerifyPlan(plan, before)(model)
