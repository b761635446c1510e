"""Whatever is changed in a graph between plan and disk is refused by name, on every target and in every form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.documents.plan import Plan
from spq_graph.passes.adapt.lift import LiftOpset
from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.check.outline import Outline, outline
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.forms import encode
from spq_graph.passes.forms.insert import InsertPrecisions
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import PROFILES
from tests.support.codes import flip_one
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu, glu_model
from tests.support.inserting import activations, plan_for

Made = tuple[ir.Model, Plan, Outline]
WANTED = {
    Role.GLU_DOWN: Precision.FP8_E4M3,
    Role.GLU_UP: Precision.W8FP8A16,
    Role.ATTN_O: Precision.W8A8_BLOCK,
    Role.ATTN_Q: Precision.BF16,
    Role.ATTN_K: Precision.FP16,
    Role.LM_HEAD: Precision.FP32,
    Role.GLU_GATE: Precision.INT6_IN_8,
}


@pytest.fixture(params=PROFILES)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    """A layer with every precision that a target has a form of its own for, after inserting and before the check."""
    profile = PROFILES[request.param]

    def choose(site: Site) -> Precision:
        return profile.settle(WANTED.get(site.role, Precision.INT8))[0]

    path = tmp_path / "model.onnx"
    shape = Decoder(layers=1, rope=False, glu=Glu(width=32, inner=32, bias=True))
    model = decoder(shape, naming="dynamo")
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    plan = plan_for(path, token_feeds(), choose, target=request.param)
    graph = load_graph(path)
    Canonicalize()(graph)
    LiftOpset()(graph)
    before = outline(graph)
    InsertPrecisions(plan, plan.recipe.profile)(graph)
    VerifyPlan(plan, before)(graph)
    return graph, plan, before


def refused(made: Made) -> str:
    model, plan, before = made
    with pytest.raises(CheckError) as caught:
        VerifyPlan(plan, before)(model)
    return caught.value.what


def codes(model: ir.Model) -> list[ir.Value]:
    """Every constant that stands for a site's weight."""
    return [v for v in model.graph.initializers.values() if isinstance(v.const_value, encode.Encoded)]


def beside(model: ir.Model, weight: ir.Value) -> ir.Value | None:
    """The scales of a weight's codes."""
    name = (weight.name or "").rpartition(".")[0]
    values = model.graph.initializers
    return next((values[found] for end in ("scale", "product_scale") if (found := f"{name}.{end}") in values), None)


def key_of(value: ir.Value) -> str:
    assert isinstance(value.const_value, encode.Encoded)
    return value.const_value.key


def replaced(value: ir.Value, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let a constant hold something else, of the same type and shape."""
    assert value.const_value is not None
    value.const_value = ir.tensor(change(value.const_value.numpy().copy()), dtype=value.dtype)


def an_untouched(model: ir.Model, before: Outline, rank: int = 1) -> ir.Value:
    """A constant of floats that belongs to no site, such as a norm's weight."""
    found = (v for v in model.graph.initializers.values() if v.name in before.constants and v.const_value is not None)
    return next(v for v in found if v.const_value.dtype is ir.DataType.FLOAT and len(v.const_value.shape) == rank)


def test_a_norm_weight_that_is_scaled(made: Made) -> None:
    weight = an_untouched(made[0], made[2])
    replaced(weight, lambda array: array * np.float32(7))
    assert f"constant {weight.name} does not hold what the source does" in refused(made)


def test_a_copy_of_the_same_bytes_is_no_change(made: Made) -> None:
    model, plan, before = made
    replaced(an_untouched(model, before), lambda array: array)
    VerifyPlan(plan, before)(model)


def test_codes_that_are_zero(made: Made) -> None:
    for weight in codes(made[0]):
        kept = weight.const_value
        replaced(weight, np.zeros_like)
        assert f"{key_of_tensor(kept)}: rows 0 to" in refused(made)
        weight.const_value = kept


def key_of_tensor(tensor: ir.TensorProtocol | None) -> str:
    assert isinstance(tensor, encode.Encoded)
    return tensor.key


def test_codes_of_our_own_that_are_read_back(made: Made) -> None:
    """As from a file: the same bytes, which no object of ours vouches for."""
    model, plan, before = made
    for weight in codes(model):
        replaced(weight, lambda array: array)
    VerifyPlan(plan, before)(model)


def test_one_code_that_is_flipped(made: Made) -> None:
    for weight in codes(made[0]):
        kept = weight.const_value
        replaced(weight, flip_one)
        assert f"{key_of_tensor(kept)}: rows 0 to" in refused(made)
        weight.const_value = kept


def test_a_scale_that_is_halved(made: Made) -> None:
    tried = 0
    for weight in codes(made[0]):
        scale = beside(made[0], weight)
        if scale is None:
            continue
        kept = scale.const_value
        replaced(scale, lambda array: np.asarray(array * np.float32(0.5)))
        assert f"{key_of(weight)}: its weight has other scales" in refused(made)
        scale.const_value = kept
        tried += 1
    assert tried


def test_codes_and_scales_that_fit_each_other_and_no_recipe(made: Made) -> None:
    """Half the codes by twice the scale: nearly the same weight, in one bit less."""
    model = made[0]
    weight = next(v for v in codes(model) if v.dtype is ir.DataType.INT8)
    scale = beside(model, weight)
    assert scale is not None
    name = key_of(weight)
    replaced(weight, lambda array: (array // 2).astype(np.int8))
    replaced(scale, lambda array: np.asarray(array * np.float32(2)))
    assert f"{name}: " in refused(made)


def test_codes_that_are_swapped_for_a_twin(made: Made) -> None:
    model = made[0]
    twins: dict[object, list[ir.Value]] = {}
    for value in codes(model):
        assert value.const_value is not None
        twins.setdefault((value.dtype, tuple(value.const_value.shape.numpy())), []).append(value)
    one, other, *_ = next(same for same in twins.values() if len(same) > 1)
    first = key_of(one)
    one.const_value, other.const_value = other.const_value, one.const_value
    assert f"{first}: rows 0 to" in refused(made)


def test_an_initializer_that_is_swapped_for_its_twin(made: Made) -> None:
    model, _, before = made
    read = [
        v for n in model.graph if n.op_type == "Mul" for v in n.inputs if v is not None and v.name in before.constants
    ]
    one, other, *_ = [value for value in read if value.shape == ir.Shape([32])]
    (use, *_) = one.uses()
    use.node.replace_input_with(use.idx, other)
    assert f"{use.node.name} (reads)" in refused(made)


def test_a_constant_that_only_has_the_name(made: Made) -> None:
    """What a node reads is not what the file would hold under that name."""
    weight = an_untouched(made[0], made[2])
    (use, *_) = weight.uses()
    other = ir.Value(name=weight.name, type=weight.type, const_value=weight.const_value)
    use.node.replace_input_with(use.idx, other)
    assert "which is not the graph's constant of that name" in refused(made)


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
