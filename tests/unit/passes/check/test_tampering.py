"""Constants that are changed in a graph between plan and disk are refused by name, on every target."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spq_graph.passes.base.marks import ADDED
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.forms import encode
from tests.support.codes import flip_one
from tests.support.tampering import Made, an_untouched, beside, codes, key_of, key_of_tensor, refused, replaced


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


def test_a_zero_point_of_another_type(made: Made) -> None:
    """Zero in 16 bits: codes would no longer saturate at the calibrated range."""
    model, plan, before = made
    for node in model.graph:
        if node.op_type == "QuantizeLinear" and ADDED in node.metadata_props:
            zero = node.inputs[2]
            assert zero is not None
            assert zero.const_value is not None
            kept = zero.const_value
            zero.const_value = ir.tensor(kept.numpy().astype(np.float32).astype(np.uint16))
            assert "its activation has another" in refused(made)
            zero.const_value = kept
    VerifyPlan(plan, before)(model)


def test_a_weight_exchanged_behind_the_back_of_its_codes(made: Made) -> None:
    """Codes are made when the file is written: of what the weight holds then."""
    model, _, before = made
    weight = next(v.const_value for v in codes(model))
    assert isinstance(weight, encode.Encoded)
    source = weight.storage.operand.weight.initializer
    assert before.constants[source.name or ""] is source.const_value
    source.const_value = ir.tensor(np.zeros(tuple(weight.storage.operand.weight.tensor.shape.numpy()), np.float32))
    assert "its weight was exchanged" in refused(made)


def test_scales_cannot_be_edited_in_place(made: Made) -> None:
    tried = 0
    for weight in codes(made[0]):
        scale = beside(made[0], weight)
        if scale is not None and scale.const_value is not None and (scale.name or "").endswith(".scale"):
            assert not scale.const_value.numpy().flags.writeable
            tried += 1
    assert tried
