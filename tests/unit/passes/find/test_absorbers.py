"""Which constants take factors for the channels of an activation, and why others do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.find.absorbers import find_absorbers, largest_rows
from spq_graph.passes.find.identify import identify
from spq_graph.terms.absorber import Absorber, Place, Unabsorbed
from spq_graph.terms.targets import PROFILES
from tests.support.decoder_graphs import AttentionForm, Decoder, decoder
from tests.support.graphs import CONTRIB, Builder, Glu, LinearForm, glu_model

Found = tuple[list[Absorber], list[Unabsorbed]]


def found_in(proto: onnx.ModelProto) -> Found:
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    Canonicalize()(model)
    found = identify(model)
    return find_absorbers(model.graph, found.sites)


def test_norms_and_glus_of_a_decoder() -> None:
    absorbers, others = found_in(decoder(Decoder(layers=2)))
    by_sites = {tuple(key.rsplit(".", 1)[-1] for key in a.sites): a for a in absorbers[:4]}
    assert by_sites[("q_proj", "k_proj", "v_proj")].place is Place.NORM
    assert by_sites[("gate_proj", "up_proj")].place is Place.NORM
    down = by_sites[("down_proj",)]
    assert (down.place, down.axis) == (Place.GLU, 1)
    mixed = by_sites[("o_proj",)]
    assert (mixed.place, mixed.axis, mixed.heads, mixed.bias) == (Place.VALUE, 1, (2, 2), None)
    assert [a.place for a in absorbers] == [Place.NORM, Place.VALUE, Place.NORM, Place.GLU] * 2 + [Place.NORM]
    assert others == []


FUSED = {"rope": False, "glu": Glu(width=32)}


@pytest.mark.parametrize(
    ("shape", "opset", "heads"),
    [
        (Decoder(kv_heads=1, layers=1), 21, (2, 1)),
        (Decoder(heads=4, kv_heads=2, layers=1, qkv_bias=True, glu=Glu(width=16)), 21, (4, 2)),
        (Decoder(heads=4, kv_heads=2, layers=1, cache=True, glu=Glu(width=16)), 21, (4, 2)),
        (Decoder(attention="GroupQueryAttention", heads=4, kv_heads=2, layers=1, **FUSED), 21, (4, 2)),
        (Decoder(attention="MultiHeadAttention", heads=4, kv_heads=4, layers=1, **FUSED), 21, (4, 4)),
        (Decoder(attention="Attention", heads=4, kv_heads=2, layers=1, **FUSED), 23, (4, 2)),
        (Decoder(attention="Attention", heads=4, kv_heads=2, layers=1, cache=True, **FUSED), 23, (4, 2)),
    ],
)
def test_values_are_followed_through_attention(shape: Decoder, opset: int, heads: tuple[int, int]) -> None:
    proto = decoder(shape, opset=opset)
    absorbers, _ = found_in(proto)
    (found,) = [a for a in absorbers if a.place is Place.VALUE]
    assert found.heads == heads
    held = {t.name: list(t.dims) for t in proto.graph.initializer}
    size = shape.glu.width // shape.heads * shape.kv_heads
    assert held[found.tensor][found.axis] == size
    assert (found.bias is not None) is shape.qkv_bias
    if found.bias is not None:
        assert held[found.bias] == [size]


@pytest.mark.parametrize("fused", [False, True])
def test_values_are_followed_as_a_cpu_has_attention_as_well(fused: bool, tmp_path: Path) -> None:
    """The pass that writes factors sees attention in the form that the target asks for."""
    path = tmp_path / "model.onnx"
    proto = decoder(Decoder(heads=4, kv_heads=2, glu=Glu(width=16)))
    onnx.save(onnx.shape_inference.infer_shapes(proto, data_prop=True), path)
    whole = prepared(path)
    model = whole.adapted(PROFILES["cpu"]) if fused else whole.copy()
    assert any(node.op_type == "Attention" for node in model.graph) is fused
    absorbers, _ = find_absorbers(model.graph, identify(whole.graph).sites)
    assert [a.heads for a in absorbers if a.place is Place.VALUE] == [(4, 2)] * 2


def test_values_made_in_one_with_query_and_key_take_none() -> None:
    absorbers, others = found_in(decoder(Decoder(attention="packed", layers=1)))
    assert not any(a.place is Place.VALUE for a in absorbers)
    assert any("no projection makes the values" in o.why for o in others)


def cache_that_goes_nowhere(graph: onnx.GraphProto) -> None:
    del graph.output[[o.name for o in graph.output].index("present.0.value")]


def cache_that_others_read(graph: onnx.GraphProto) -> None:
    graph.node.append(helper.make_node("Relu", ["past_key_values.0.value"], ["seen"]))
    graph.output.append(helper.make_tensor_value_info("seen", 1, None))


def new_values_that_others_read(graph: onnx.GraphProto) -> None:
    joined = next(n for n in graph.node if n.output[0] == "present.0.value")
    graph.node.append(helper.make_node("Relu", [joined.input[1]], ["seen"]))
    graph.output.append(helper.make_tensor_value_info("seen", 1, None))


def two_projections_in_one_value(graph: onnx.GraphProto) -> None:
    """As an adapter adds its own: the projection makes a part of the values only."""
    at = [n for n, node in enumerate(graph.node) if node.op_type == "MatMul"][2]  # behind those of query and key
    node = graph.node[at]
    alone = helper.make_node("MatMul", list(node.input), ["alone"], name="alone")
    alone.metadata_props.extend(node.metadata_props)
    more = helper.make_node("Tanh", ["alone"], ["more"], name="more")
    both = helper.make_node("Add", ["alone", "more"], list(node.output), name="both")
    del graph.node[at]
    for n, one in enumerate((alone, more, both)):
        graph.node.insert(at + n, one)


@pytest.mark.parametrize(
    ("attention", "edit", "why"),
    [
        *(
            (attention, edit, why)
            for attention in ("plain", "Attention")
            for edit, why in (
                (lambda graph: None, None),
                (cache_that_goes_nowhere, "are not those that the graph gave"),
                (cache_that_others_read, "are not those that the graph gave"),
                (two_projections_in_one_value, "makes the values of"),
            )
        ),
        ("plain", new_values_that_others_read, "makes the values of"),
    ],
)
def test_values_that_others_have_a_part_in_take_none(
    attention: AttentionForm, edit: Callable[[onnx.GraphProto], None], why: str | None
) -> None:
    proto = decoder(Decoder(layers=1, cache=True, attention=attention, rope=False), opset=23)
    edit(proto.graph)
    absorbers, others = found_in(proto)
    assert any(a.place is Place.VALUE for a in absorbers) is (why is None)
    assert why is None or any(why in o.why for o in others)


@pytest.mark.parametrize(("form", "axis"), [("matmul", 1), ("transpose", 0), ("gemm", 1), ("gemm_transposed", 0)])
def test_channels_of_an_up_projection_lie_where_its_product_sees_columns(form: LinearForm, axis: int) -> None:
    absorbers, _ = found_in(glu_model(Glu(form=form)))
    assert [(a.place, a.axis) for a in absorbers if a.place is Place.GLU] == [(Place.GLU, axis)]


def test_a_tied_head_keeps_its_norm_as_it_is() -> None:
    _, others = found_in(decoder(Decoder(layers=1, tied=True)))
    last = others[-1]
    assert "reads" in last.why
    assert last.why.endswith("as well")


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        (Glu(packing="split"), "no weight for each channel"),
        (Glu(bias=True), "no weight for each channel"),
        (Glu(form="gemm", bias=True), "adds a bias to it"),
    ],
)
def test_glus_that_take_none(shape: Glu, why: str) -> None:
    absorbers, others = found_in(glu_model(shape))
    assert not any(a.place is Place.GLU for a in absorbers)
    assert any(why in o.why for o in others)


def test_half_precision_takes_none() -> None:
    absorbers, others = found_in(decoder(Decoder(layers=1), dtype=np.float16))
    assert absorbers == []
    assert all("factors are exact" in o.why for o in others)


@pytest.mark.parametrize("norm", ["SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"])
def test_norms_in_one_operator(norm: str) -> None:
    b = Builder()
    more = ["x"] if norm.startswith("Skip") else []
    domain = {"domain": CONTRIB} if more else {}
    normed = b.op(norm, "x", *more, b.const(np.ones(8, np.float32)), epsilon=1e-5, **domain)
    b.op("Identity", b.linear(normed, 8, 4), outputs=["y"])
    absorbers, others = found_in(b.model({"x": (1, ["n", 8])}, {"y": (1, ["n", 4])}))
    assert others == []
    assert [(a.place, a.axis) for a in absorbers] == [(Place.NORM, 0)]


@pytest.mark.parametrize("number", [1e-36, 1e36])
def test_numbers_that_factors_could_round_are_told(number: float) -> None:
    b = Builder()
    weight = np.full((8, 4), 0.5, np.float32)
    weight[3] = 2.0
    normed = b.op("Mul", "x", b.const(np.ones(8, np.float32)))
    b.op("MatMul", normed, b.const(weight), outputs=["y"])
    proto = b.model({"x": (1, ["n", 8])}, {"y": (1, ["n", 4])})
    model = ir.from_proto(proto)
    Canonicalize()(model)
    found = identify(model)
    (absorber,), _ = find_absorbers(model.graph, found.sites)
    rows = largest_rows(model.graph, absorber, found.sites)
    assert rows is not None
    assert rows.tolist() == [0.5] * 3 + [2.0] + [0.5] * 4
    weight[5, 1] = number
    held = next(v for v in model.graph.initializers.values() if v.const_value is not None and v.const_value.size == 32)
    held.const_value = ir.tensor(weight, name=held.name)
    assert largest_rows(model.graph, absorber, found.sites) is None


def test_what_others_read_as_well_is_refused_by_name() -> None:
    b = Builder()
    normed = b.op("Mul", "x", b.const(np.ones(8, np.float32)))
    b.op("Add", b.linear(normed, 8, 8), normed, outputs=["y"])
    absorbers, others = found_in(b.model({"x": (1, ["n", 8])}, {"y": (1, ["n", 8])}))
    assert absorbers == []
    assert "reads it as well" in others[0].why


def test_a_weight_that_two_norms_share_is_refused_by_name() -> None:
    b = Builder()
    weight = b.const(np.ones(8, np.float32))
    one, other = (b.linear(b.op("Mul", x, weight), 8, 4) for x in ("x", "z"))
    b.op("Add", one, other, outputs=["y"])
    absorbers, others = found_in(b.model({"x": (1, ["n", 8]), "z": (1, ["n", 8])}, {"y": (1, ["n", 4])}))
    assert absorbers == []
    assert all(f"reads {weight} as well" in o.why for o in others)
