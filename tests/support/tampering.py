"""A graph after inserting and before the check, and what is changed in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.documents.plan import Plan
from spq_graph.passes.adapt.lift import LiftOpset
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.check.outline import Outline, outline
from spq_graph.passes.check.plan import VerifyPlan
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.forms import encode
from spq_graph.passes.forms.insert import InsertPrecisions
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from spq_graph.terms.targets import PROFILES, Target
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu
from tests.support.inserting import plan_for

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


def made_for(target: Target, folder: Path, peeled: int = 0, wanted: Mapping[Role, Precision] = WANTED) -> Made:
    """A layer with every precision that a target has a form of its own for, after inserting and before the check."""
    profile = PROFILES[target]

    def choose(site: Site) -> Precision:
        return profile.settle(wanted.get(site.role, Precision.INT8))[0]

    path = folder / "model.onnx"
    shape = Decoder(layers=1, rope=False, glu=Glu(width=32, inner=32, bias=True))
    model = decoder(shape, naming="dynamo")
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    plan = plan_for(path, token_feeds(), choose, target=target, peeled=peeled)
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


def key_of_tensor(tensor: ir.TensorProtocol | None) -> str:
    assert isinstance(tensor, encode.Encoded)
    return tensor.key
