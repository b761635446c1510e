"""Where graphs are cut, what is handed over, and that the pieces together are the whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.pieces.split import split
from spq_graph.passes.pieces.stages import staged
from spq_graph.terms.segment import Segmented, type_of
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu

# So wide that masks and rotary tables are little beside the weights of a layer.
WIDE = Decoder(glu=Glu(width=64, inner=256), layers=4, heads=16, kv_heads=16)


def canonical(shape: Decoder | None = None, **options: Any) -> ir.Model:
    model = ir.from_proto(decoder(shape or Decoder(), **options))
    Canonicalize()(model)
    return model


def run(model: Segmented, feeds: dict[str, Any]) -> dict[str, Any]:
    """All pieces in turn, by the ONNX reference evaluator."""
    values: dict[str, Any] = {}
    for segment in model.segments:
        handed = {name: (type_of(values[name]), values[name].shape) for name in segment.reads}
        proto = onnx.load_model_from_string(segment.proto(handed))
        for tensor in proto.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                array = segment.weights[tensor.name]().array
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        names = {value.name for value in proto.graph.input}
        given = {name: array for name, array in (feeds | values).items() if name in names}
        found = ReferenceEvaluator(proto).run(list(segment.gives), given)
        values |= dict(zip(segment.gives, found, strict=True))
    return values


@pytest.mark.parametrize("limit", [1 << 20, 2400, 900, 1])
@pytest.mark.parametrize(
    "shape",
    [
        Decoder(layers=3),
        Decoder(tied=True, capped=True),
        Decoder(kv_heads=1),
        Decoder(experts=3),
        Decoder(glu=Glu(packing="split")),
    ],
    ids=["plain", "tied", "grouped", "experts", "packed"],
)
def test_pieces_together_are_the_whole(shape: Decoder, limit: int) -> None:
    whole = decoder(shape)
    feeds = token_feeds()
    (expected,) = ReferenceEvaluator(whole).run(["logits"], feeds)
    cut = split(canonical(shape), Path("model.onnx"), limit)
    assert (len(cut.segments) == 1) is (limit == 1 << 20)
    np.testing.assert_allclose(run(cut, feeds)["logits"], expected, rtol=1e-5, atol=1e-5)


def test_layers_are_the_best_places_to_cut() -> None:
    model = canonical(WIDE)
    layer = sum(s.size for s in split(model, Path("model.onnx"), 1 << 30).segments) // 4
    cut = split(model, Path("model.onnx"), int(1.2 * layer))
    assert len(cut.segments) >= 3
    assert all(len(segment.reads) == 1 for segment in cut.segments[1:])
    assert all(segment.size <= 1.2 * layer for segment in cut.segments)


def test_masks_and_rotary_angles_are_computed_again_and_never_handed_over() -> None:
    model = canonical(WIDE)
    light = {"Where", "LessOrEqual", "And", "Cast", "Unsqueeze"}
    makers = {v.name: node.op_type for node in model.graph for v in node.outputs}
    for segment in split(model, Path("model.onnx"), 400_000).segments:
        assert not {makers[name] for name in segment.reads} & light


def test_outputs_that_are_inputs_or_constants() -> None:
    model = canonical(WIDE)
    given = [model.graph.inputs[0], next(iter(model.graph.initializers.values()))]
    model.graph.outputs.extend(given)
    cut = split(model, Path("model.onnx"), 400_000)
    assert len(cut.segments) > 1
    for segment in cut.segments:
        onnx.load_model_from_string(segment.proto({}))
    assert {value.name for value in given} <= set(cut.segments[-1].gives)


def test_what_no_output_needs_is_left_out() -> None:
    model = canonical()
    product = next(node for node in model.graph if node.op_type == "MatMul")
    model.graph.outputs[:] = [product.outputs[0]]
    (segment,) = split(model, Path("model.onnx"), 1 << 30).segments
    proto = onnx.load_model_from_string(segment.proto({}))
    assert [node.op_type for node in proto.graph.node].count("MatMul") == 1
    assert "lm_head" not in str(proto.graph.node)


def test_half_precision_counts_as_it_is_widened() -> None:
    single = split(canonical(), Path("model.onnx"), 1 << 30).segments[0].size
    half = split(canonical(dtype=np.float16), Path("model.onnx"), 1 << 30).segments[0].size
    assert half == pytest.approx(single, rel=0.05)


def test_weights_in_the_models_own_files_are_left_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    ir.save(ir.from_proto(decoder(Decoder(glu=Glu(width=32)))), path, external_data="weights.bin")
    model = ir.load(path)
    Canonicalize()(model)
    (segment,) = split(model, path, 1 << 30).segments
    assert not segment.weights
    proto = onnx.load_model_from_string(segment.proto({}))
    places = {e.value for t in proto.graph.initializer for e in t.external_data if e.key == "location"}
    assert places == {"weights.bin"}


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 4),
    kv_heads=st.sampled_from([1, 2]),
    tied=st.booleans(),
    limit=st.integers(1, 20_000),
)
def test_any_limit_gives_the_same_logits(seed: int, layers: int, kv_heads: int, tied: bool, limit: int) -> None:
    shape = Decoder(layers=layers, kv_heads=kv_heads, tied=tied)
    feeds = token_feeds(seed=seed)
    (expected,) = ReferenceEvaluator(decoder(shape)).run(["logits"], feeds)
    found = run(split(canonical(shape), Path("model.onnx"), limit), feeds)["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_between_projections_and_an_attention_that_parts_the_heads_itself(turned: bool) -> None:
    """ONNX Runtime does not load a piece that begins there, unless it says how wide they are."""
    weights = {f"{part}.weight": np.ones((16, 16 if part in "qo" else 8), np.float32) for part in "qkvo"}
    products = [helper.make_node("MatMul", ["x", f"{part}.weight"], [part], name=part) for part in "qkv"]
    read_by = ["turned q", "turned k", "v"] if turned else ["q", "k", "v"]
    attention = helper.make_node("Attention", read_by, ["mixed"], name="mix", q_num_heads=4, kv_num_heads=2)
    rotary = [
        helper.make_node(
            "RotaryEmbedding", [part, "cosines", "sines"], [f"turned {part}"], num_heads=heads, name=part * 2
        )
        for part, heads in (("q", 4), ("k", 2))
    ]
    out = helper.make_node("MatMul", ["mixed", "o.weight"], ["y"], name="o")
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", "s", 16]) for name in "xy"]
    angles = np.random.default_rng(1).uniform(0, 9, (2, 5, 2)).astype(np.float32)
    constants = weights | ({"cosines": np.cos(angles), "sines": np.sin(angles)} if turned else {})
    kept = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    nodes = [*products, *(rotary if turned else []), attention, out]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], kept)
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    model = ir.from_proto(whole)
    Canonicalize()(model)
    last = staged(model, Path("model.onnx"), "y", [("q", "k", "v")]).stages[-1].segment
    assert set(last.reads) == {"q", "k", "v"}
    shapes = {"q": (2, 5, 16), "k": (2, 5, 8), "v": (2, 5, 8)}
    proto = last.proto({name: ("tensor(float)", shape) for name, shape in shapes.items()})
    read = onnx.load_from_string(proto).graph.input
    sizes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in read}
    assert sizes == {"q": [0, 0, 16], "k": [0, 0, 8], "v": [0, 0, 8]}
    session = onnxruntime.InferenceSession(proto, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    (expected,) = onnxruntime.InferenceSession(whole.SerializeToString()).run(None, {"x": x})
    given = {part: x @ weights[f"{part}.weight"] for part in "qkv"}
    np.testing.assert_allclose(session.run(None, given)[0], expected, rtol=1e-5)
