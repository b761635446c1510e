"""Nodes, values and names that are changed in a graph between plan and disk are refused, on every target."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.check.outline import outline
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.forms.insert import InsertPrecisions
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from tests.support.graphs import Builder, Glu, glu_model
from tests.support.inserting import activations, plan_for
from tests.support.tampering import Made, refused


def test_an_attribute_of_an_untouched_node(made: Made) -> None:
    node = next(node for node in made[0].graph if node.op_type == "Softmax")
    node.attributes["axis"] = ir.AttrInt64("axis", 1)
    assert f"nodes outside of the plan changed: {node.name} (attribute axis)" in refused(made)


def test_an_attribute_of_an_inserted_node(made: Made) -> None:
    for node in made[0].graph:
        if ADDED in node.metadata_props and node.op_type == "Cast":
            node.attributes["saturate"] = ir.AttrInt64("saturate", 0)
            assert f"stands {node.name} with other attributes" in refused(made)
            return
    node = next(node for node in made[0].graph if node.op_type == "DequantizeLinear" and ADDED in node.metadata_props)
    node.attributes["axis"] = ir.AttrInt64("axis", 0)
    assert f"stands {node.name} with other attributes" in refused(made)


def behind_the_logits(model: ir.Model) -> ir.Node:
    logits = next(v for v in model.graph.outputs if v.name == "logits")
    half = ir.Value(name="half", const_value=ir.tensor(np.float32(0.5)), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.initializers.add(half)
    node = ir.node("Mul", [logits, half], name="behind")
    node.outputs[0].type, node.outputs[0].shape = logits.type, logits.shape
    logits.name, node.outputs[0].name = "logits.inner", "logits"
    model.graph.append(node)
    logits.replace_all_uses_with(node.outputs[0], replace_graph_outputs=True)
    node.replace_input_with(0, logits)
    return node


def test_a_node_behind_the_logits(made: Made) -> None:
    behind_the_logits(made[0])
    told = refused(made)
    assert "nodes outside of the plan changed" in told
    assert "behind" in told


@pytest.mark.parametrize("role", [Role.LM_HEAD, Role.ATTN_Q, Role.GLU_DOWN])
def test_a_node_behind_the_logits_that_carries_our_mark(made: Made, role: Role) -> None:
    """For the head, which is as it was, and for sites that have nodes of ours."""
    model, plan, _ = made
    node = behind_the_logits(model)
    node.metadata_props[ADDED] = next(site.node for site in plan.sites if site.role is role)
    assert f"{node.name} was inserted for" in refused(made)


def test_a_node_of_ours_between_two_of_ours(made: Made) -> None:
    """Marked for the right site, in the right place, and in no form."""
    model, plan, _ = made
    integer = {site.node: site for site in plan.sites if site.precision is Precision.INT8}
    node = next(node for node in model.graph if node.name in integer)
    value = node.inputs[0]
    assert value is not None
    added = ir.node("Neg", [value], name="between")
    added.metadata_props[ADDED] = node.name or ""
    model.graph.insert_before(node, added)
    node.replace_input_with(0, added.outputs[0])
    assert integer[node.name or ""].key in refused(made)


def test_another_bias(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(glu_model(Glu(bias=True, form="gemm")), path)
    plan = plan_for(path, {"x": activations(3, 8)}, Precision.INT8)
    model = load_graph(path)
    Canonicalize()(model)
    before = outline(model)
    InsertPrecisions(plan, plan.recipe.profile)(model)
    VerifyPlan(plan, before)(model)
    one, other, *_ = (n for n in model.graph if n.op_type == "Add" and ADDED in n.metadata_props)
    assert other.inputs[1] is not None
    one.replace_input_with(1, other.inputs[1])
    assert "its bias is" in refused((model, plan, before))


def test_outputs_of_another_type(made: Made) -> None:
    made[0].graph.outputs[0].dtype = ir.DataType.FLOAT16
    assert "the graph's outputs changed: logits" in refused(made)


def test_another_opset(made: Made) -> None:
    made[0].graph.opset_imports[""] += 1
    assert "the opset changed" in refused(made)


def test_another_domain_is_imported(made: Made) -> None:
    made[0].graph.opset_imports["stranger"] = 1
    assert "the opset of stranger changed from None to 1" in refused(made)


def test_another_ir_version(made: Made) -> None:
    made[0].ir_version += 1
    assert "the IR version is" in refused(made)


def site_nodes(made: Made) -> list[ir.Node]:
    """Products of sites that the plan changes."""
    names = {site.node for site in made[1].sites if site.role is not Role.LM_HEAD}
    return [node for node in made[0].graph if node.name in names]


def rebuilt(made: Made, node: ir.Node, op_type: str, inputs: list[ir.Value | None], **attributes: object) -> None:
    """Put another node in a node's place, under its name and with its mark."""
    graph, output = made[0].graph, node.outputs[0]
    other = ir.node(op_type, inputs, attributes, domain=node.domain, name=node.name)
    other.metadata_props.update(node.metadata_props)
    other.outputs[0].type, other.outputs[0].shape = output.type, output.shape
    graph.insert_before(node, other)
    name, output.name = output.name, None
    other.outputs[0].name = name
    output.replace_all_uses_with(other.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)


def test_a_product_that_computes_something_else(made: Made) -> None:
    """In every form: the same operands and results, through another operator."""
    for node in site_nodes(made):
        if node.op_type == "MatMul":
            rebuilt(made, node, "Gemm", list(node.inputs), alpha=2.0)
            assert "a Gemm" in refused(made)
            return
    pytest.fail("no target has a MatMul less")


def test_inputs_that_no_form_has(made: Made) -> None:
    """Zero points, biases, and what an operator would take beside what it is given."""
    tried = set()
    model = made[0]
    ours = [n for n in model.graph if ADDED in n.metadata_props and n.op_type not in ("Reshape", "Sum")]
    for node in [*site_nodes(made), *ours]:
        if node.op_type in tried:
            continue
        tried.add(node.op_type)
        zero = ir.tensor(np.zeros(1, np.uint8))
        extra = ir.Value(name="extra", const_value=zero, type=ir.TensorType(zero.dtype))
        model.graph.initializers.add(extra)
        count = len(node.inputs)
        node.resize_inputs(count + 1)
        node.replace_input_with(count, extra)
        assert refused(made), node.op_type
        node.resize_inputs(count)
        model.graph.initializers.pop("extra")
        VerifyPlan(made[1], made[2])(model)
    assert len(tried) > 3


def test_two_nodes_of_one_name(made: Made) -> None:
    """Whichever of them is looked at, the other goes unseen."""
    node = next(node for node in made[0].graph if node.op_type == "Softmax")
    node.name = site_nodes(made)[-1].name
    assert "several nodes are called" in refused(made)


def test_two_values_of_one_name(made: Made) -> None:
    one, other, *_ = (node.outputs[0] for node in made[0].graph if node.op_type in ("Softmax", "Sqrt"))
    one.name = other.name
    assert "several values are called" in refused(made)


def test_a_value_of_ours_under_the_name_of_one_that_went(tmp_path: Path) -> None:
    """An Identity on an activation is dropped, and its readers get what a quantizer gives, under its name."""
    builder = Builder()
    hidden = builder.op("Identity", builder.op("Relu", "x"))
    product = builder.op("MatMul", hidden, builder.const(builder.random(32, 32)))
    builder.op("Add", product, hidden, outputs=["y"])
    path = tmp_path / "model.onnx"
    onnx.save(builder.model({"x": (1, ["n", 32])}, {"y": (1, ["n", 32])}), path)
    plan = plan_for(path, {"x": activations(5, 32)}, Precision.INT8)
    model = load_graph(path)
    Canonicalize()(model)
    before = outline(model)
    InsertPrecisions(plan, plan.recipe.profile)(model)
    VerifyPlan(plan, before)(model)
    identity = next(node for node in model.graph if node.op_type == "Identity")
    back = next(n for n in model.graph if n.op_type == "DequantizeLinear" and n.inputs[0].producer() is not None)
    name = identity.outputs[0].name
    quantize = back.inputs[0].producer()
    quantize.replace_input_with(0, identity.inputs[0])
    identity.outputs[0].replace_all_uses_with(back.outputs[0])
    model.graph.remove(identity, safe=True)
    back.outputs[0].name = name
    assert refused((model, plan, before))


def test_a_node_in_front_of_what_it_reads(made: Made) -> None:
    nodes = [node for node in made[0].graph if node.op_type == "Softmax"]
    reader = nodes[0].outputs[0].uses()[0].node
    made[0].graph.remove(nodes[0])
    made[0].graph.insert_after(reader, nodes[0])
    assert f"{reader.name} stands in front of what gives" in refused(made)


def test_an_output_that_nothing_gives(made: Made) -> None:
    output = made[0].graph.outputs[0]
    made[0].graph.outputs[0] = ir.Value(name=output.name, type=output.type, shape=output.shape)
    assert refused(made)


def test_values_of_another_type(made: Made) -> None:
    node = next(node for node in made[0].graph if node.op_type == "Softmax")
    node.outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)
    assert f"{node.name} (types)" in refused(made)


def test_a_number_of_another_kind(made: Made) -> None:
    node = next(node for node in made[0].graph if node.op_type == "Softmax")
    axis = node.attributes["axis"].as_int()
    node.attributes["axis"] = ir.AttrFloat32("axis", float(axis))
    assert f"{node.name} (attribute axis)" in refused(made)
