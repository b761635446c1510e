"""A prefix in a graph: the logits are those behind its tokens, no client sees it, and it is taken out to the byte."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from spq_graph.documents.changes import Prefix
from spq_graph.passes.base.run import run
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.changes.prefix import PrependPrefix, RemovePrefix
from spq_graph.terms.errors import GraphError
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.graphs import Array, Glu
from tests.support.prefixes import Cached, prefix_for

TOKENS = (1, 5, 9)
IDS = np.random.default_rng(0).integers(0, 16, (2, 7))
SHAPES = [
    Decoder(cache=True),
    Decoder(cache=True, heads=4, kv_heads=2, glu=Glu(width=32, inner=64)),
    Decoder(cache=True, attention="qk_norm", rope=False, capped=True),
]
CLOSE = {"rtol": 0, "atol": 1e-5}  # logits are of a few units


def source(shape: Decoder, opset: int = 21) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(decoder(shape, opset=opset))


def canonical(proto: onnx.ModelProto) -> ir.Model:
    model = ir.from_proto(proto)
    run(model, [Canonicalize()])
    return model


def prefixed(proto: onnx.ModelProto, prefix: Prefix | None = None) -> Cached:
    model = canonical(proto)
    run(model, [PrependPrefix(prefix or prefix_for(proto, TOKENS))])
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    return Cached(made)


def behind(proto: onnx.ModelProto, ids: Array) -> Array:
    """What the source says of these tokens behind those of the prefix."""
    front = np.tile(np.array(TOKENS), (len(ids), 1))
    return Cached(proto).step(np.concatenate([front, ids], axis=1))["logits"][:, len(TOKENS) :]


FUSED = Decoder(cache=True, attention="Attention", heads=4, kv_heads=2, glu=Glu(width=32, inner=64))


@pytest.mark.parametrize(("shape", "opset"), [*((shape, opset) for shape in SHAPES for opset in (14, 21)), (FUSED, 23)])
def test_logits_are_those_of_the_source_behind_the_prefix(shape: Decoder, opset: int) -> None:
    proto = source(shape, opset)
    found = prefixed(proto).step(IDS)
    np.testing.assert_allclose(found["logits"], behind(proto, IDS), **CLOSE)
    assert {name: array.shape[2] for name, array in found.items() if name != "logits"} == dict.fromkeys(
        shape.caches.values(), IDS.shape[1]
    )


@pytest.mark.parametrize(("shape", "opset"), [*((shape, 21) for shape in SHAPES), (FUSED, 23)])
def test_token_by_token_with_the_cache(shape: Decoder, opset: int) -> None:
    proto = source(shape, opset)
    made, past, steps = prefixed(proto), None, []
    for at in range(IDS.shape[1]):
        given = made.step(IDS[:, at : at + 1], past)
        past = made.after(given)
        steps.append(given["logits"])
        assert all(array.shape[2] == at + 1 for array in past.values())
    np.testing.assert_allclose(np.concatenate(steps, axis=1), behind(proto, IDS), **CLOSE)


def test_rows_of_different_lengths_padded_on_the_left() -> None:
    proto = source(SHAPES[1])
    mask = np.ones_like(IDS)
    mask[0, :3] = 0
    found = prefixed(proto).step(IDS, mask=mask)["logits"]
    np.testing.assert_allclose(found[0, 3:], behind(proto, IDS[:1, 3:])[0], **CLOSE)
    np.testing.assert_allclose(found[1], behind(proto, IDS[1:])[0], **CLOSE)


def test_inputs_and_outputs_are_what_they_were() -> None:
    proto = source(SHAPES[0])
    made = prefixed(proto).model
    assert isinstance(made, onnx.ModelProto)
    assert list(made.graph.input) == list(proto.graph.input)
    assert list(made.graph.output) == list(proto.graph.output)


@pytest.mark.parametrize("shape", SHAPES)
def test_taken_out_again_it_is_the_source_to_the_byte(shape: Decoder) -> None:
    proto = source(shape)
    model = canonical(proto)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    assert run(model, [PrependPrefix(prefix_for(proto, TOKENS))])
    assert ir.to_proto(model).SerializeToString(deterministic=True) != before
    assert run(model, [RemovePrefix()])
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert not run(model, [RemovePrefix()])


def test_no_prefix_changes_nothing() -> None:
    model = canonical(source(SHAPES[0]))
    assert not run(model, [PrependPrefix(None)])


def test_keys_and_values_of_another_model_are_refused() -> None:
    prefix = prefix_for(source(SHAPES[0]), TOKENS)
    with pytest.raises(GraphError, match=r"has \[1, 2, length, 4\] for 'past_key_values.0.key', and the graph") as told:
        prefixed(source(SHAPES[1]), prefix)
    assert told.value.remedy is not None
    with pytest.raises(GraphError, match=r"nothing for 'past_key_values.2.key'"):
        prefixed(source(Decoder(cache=True, layers=3)), prefix)
    with pytest.raises(GraphError, match="no such cache"):
        prefixed(source(Decoder(cache=True, layers=1)), prefix)


def no_cache() -> onnx.ModelProto:
    return source(Decoder())


def fused() -> onnx.ModelProto:
    return decoder(Decoder(attention="GroupQueryAttention"))


def of_fixed_length() -> onnx.ModelProto:
    proto = source(SHAPES[0])
    for value in proto.graph.input:
        if value.name.startswith("past"):
            value.type.tensor_type.shape.dim[2].dim_value = 8
    return proto


def with_input(name: str, sizes: list[int | str]) -> onnx.ModelProto:
    proto = source(SHAPES[0])
    proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.INT64, sizes))
    return proto


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (no_cache(), "takes no keys and values of earlier tokens"),
        (fused(), "GroupQueryAttention of ONNX Runtime takes several tokens"),
        (of_fixed_length(), r"'past_key_values.0.key' is not one that grows"),
        (with_input("use_cache_branch", [1]), "'use_cache_branch' .* is not known to go with a cache"),
        (with_input("local_mask", ["batch", 1, 1, "total"]), "'local_mask' .* is not known to go with a cache"),
    ],
)
def test_a_graph_that_has_no_place_for_it_is_refused(proto: onnx.ModelProto, words: str) -> None:
    with pytest.raises(GraphError, match=words) as told:
        prefixed(proto, prefix_for(source(SHAPES[0]), TOKENS))
    assert "spq-graph export" in (told.value.remedy or "")
