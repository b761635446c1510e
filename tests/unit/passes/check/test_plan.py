"""What a plan wrote passes, and every way to tamper with it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.documents.plan import Plan
from spq_graph.passes.annotate import Annotate
from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.check.outline import Outline, outline
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.forms.insert import InsertPrecisions
from spq_graph.passes.forms.reading import precision_of
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu
from tests.support.inserting import plan_for

CHOSEN = {
    Role.GLU_DOWN: Precision.W8A8_BLOCK,
    Role.GLU_GATE: Precision.INT6_IN_8,
    Role.ATTN_O: Precision.FP16,
    Role.LM_HEAD: Precision.FP32,
    Role.GLU_UP: Precision.FP8_E5M2,
    Role.ATTN_V: Precision.W8FP8A16,
}


def choose(site: Site) -> Precision:
    return CHOSEN.get(site.role, Precision.INT8)


@pytest.fixture
def done(tmp_path: Path) -> tuple[ir.Model, Plan, Outline]:
    """A decoder with every kind of precision inserted, its plan, and its outline before."""
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(glu=Glu(width=32, inner=32))), path)
    plan = plan_for(path, token_feeds(), choose)
    model = load_graph(path)
    Canonicalize()(model)
    before = outline(model)
    InsertPrecisions(plan, plan.recipe.profile)(model)
    return model, plan, before


def first(nodes: Iterable[ir.Node], op_type: str) -> ir.Node:
    return next(node for node in nodes if node.op_type == op_type)


def site_node(model: ir.Model, plan: Plan, role: Role) -> ir.Node:
    name = next(site.node for site in plan.sites if site.role is role)
    return next(node for node in model.graph if node.name == name)


def test_what_was_inserted_passes(done: tuple[ir.Model, Plan, Outline]) -> None:
    model, plan, before = done
    VerifyPlan(plan, before)(model)
    Annotate(plan)(model)
    VerifyPlan(plan, before)(model)


def test_precisions_in_the_file(done: tuple[ir.Model, Plan, Outline]) -> None:
    model, plan, _ = done
    found = {role: precision_of(site_node(model, plan, role)) for role in CHOSEN}
    assert found == {**CHOSEN, Role.GLU_GATE: Precision.INT8}


def remove_quantize(model: ir.Model, plan: Plan) -> None:
    node = first(model.graph, "QuantizeLinear")
    assert node.inputs[0] is not None
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    model.graph.remove(node, safe=True)


def remove_pair(model: ir.Model, plan: Plan) -> None:
    node = site_node(model, plan, Role.ATTN_Q)
    back = node.inputs[0].producer() if node.inputs[0] is not None else None
    quantize = back.inputs[0].producer() if back is not None and back.inputs[0] is not None else None
    assert quantize is not None
    node.replace_input_with(0, quantize.inputs[0])


def remove_clip(model: ir.Model, plan: Plan) -> None:
    node = first(model.graph, "Clip")
    assert node.inputs[0] is not None
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    model.graph.remove(node, safe=True)


def other_scale(model: ir.Model, plan: Plan) -> None:
    scale = first(model.graph, "QuantizeLinear").inputs[1]
    assert scale is not None
    scale.const_value = ir.tensor(np.float32(0.5))


def float_weight(model: ir.Model, plan: Plan) -> None:
    node = site_node(model, plan, Role.ATTN_K)
    weight = ir.Value(name="tampered", const_value=ir.tensor(np.ones((32, 32), np.float32)))
    model.graph.initializers.add(weight)
    node.replace_input_with(1, weight)


def wide_codes(model: ir.Model, plan: Plan) -> None:
    node = site_node(model, plan, Role.ATTN_K)
    back = node.inputs[1].producer() if node.inputs[1] is not None else None
    assert back is not None
    assert back.inputs[0] is not None
    back.inputs[0].const_value = ir.tensor(np.ones((32, 32), np.int16))


def full_weight_where_half_was_planned(model: ir.Model, plan: Plan) -> None:
    node = site_node(model, plan, Role.ATTN_O)
    weight = ir.Value(name="tampered", const_value=ir.tensor(np.ones((32, 32), np.float32)))
    model.graph.initializers.add(weight)
    node.replace_input_with(1, weight)


def quantize_the_head(model: ir.Model, plan: Plan) -> None:
    node, quantized = site_node(model, plan, Role.LM_HEAD), site_node(model, plan, Role.ATTN_Q)
    for index in (0, 1):
        node.replace_input_with(index, quantized.inputs[index])


def extra_node(model: ir.Model, plan: Plan) -> None:
    node = ir.node("Neg", [model.graph.inputs[0]], name="extra")
    model.graph.insert_before(model.graph[0], node)


def disguised_node(model: ir.Model, plan: Plan) -> None:
    extra_node(model, plan)
    model.graph[0].metadata_props[ADDED] = "nobody"


def lost_node(model: ir.Model, plan: Plan) -> None:
    node = first(model.graph, "Softmax")
    assert node.inputs[0] is not None
    node.outputs[0].replace_all_uses_with(node.inputs[0])
    model.graph.remove(node, safe=True)


def other_operator(model: ir.Model, plan: Plan) -> None:
    first(model.graph, "Sigmoid").op_type = "Tanh"


def other_operand(model: ir.Model, plan: Plan) -> None:
    node = first(model.graph, "Softmax")
    node.replace_input_with(0, model.graph.inputs[0])


def lost_site(model: ir.Model, plan: Plan) -> None:
    site_node(model, plan, Role.ATTN_V).name = "renamed"


def other_level(model: ir.Model, plan: Plan) -> None:
    first(model.graph, "MatMulNBits").attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)


TAMPERED: dict[str, tuple[Callable[[ir.Model, Plan], None], str]] = {
    "no QuantizeLinear": (remove_quantize, "does not undo a QuantizeLinear"),
    "no pair": (remove_pair, r"q_proj: planned int8, found w8a16"),
    "no Clip": (remove_clip, "no Clip keeps its activation within 6 bits"),
    "other scale": (other_scale, "another quantizer than its range asks for"),
    "float weight": (float_weight, "k_proj: planned int8, found fp32"),
    "wide codes": (wide_codes, "its weight is not held as int8"),
    "full weight": (full_weight_where_half_was_planned, "o_proj: planned fp16, found fp32"),
    "quantized head": (quantize_the_head, "lm_head: planned fp32, found int8"),
    "other level": (other_level, r"down_proj: planned w8a8_block, found w8a16 \(accuracy_level 1\)"),
    "extra node": (extra_node, "nodes outside of the plan changed: extra"),
    "disguised node": (disguised_node, "extra was inserted for 'nobody', which is no site"),
    "lost node": (lost_node, "nodes outside of the plan changed: .*Softmax"),
    "other operator": (other_operator, "nodes outside of the plan changed: .*Sigmoid"),
    "other operand": (other_operand, "nodes outside of the plan changed: .*Softmax"),
    "lost site": (lost_site, "v_proj: its node MatMul_[0-9]+ is gone"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_named(done: tuple[ir.Model, Plan, Outline], name: str) -> None:
    model, plan, before = done
    tamper, message = TAMPERED[name]
    tamper(model, plan)
    with pytest.raises(CheckError, match=message):
        VerifyPlan(plan, before)(model)
