"""Sites, roles, layers and keys, in every form that exporters give them; near misses with the reason."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.find.identify import identify
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role
from tests.support.decoder_graphs import AttentionForm, Decoder, decoder
from tests.support.finding import FLOAT, Write, found_in, roles
from tests.support.graphs import (
    ACTIVATIONS,
    LINEAR_FORMS,
    PACKINGS,
    Builder,
    Glu,
    LinearForm,
    Naming,
    Packing,
    glu_model,
    weights_of,
)

GLUS = st.builds(
    Glu,
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    form=st.sampled_from(LINEAR_FORMS),
    packing=st.sampled_from(PACKINGS),
    gate_first=st.booleans(),
    bias=st.booleans(),
    between=st.lists(st.sampled_from(["Cast", "Identity"]), max_size=2).map(tuple),
)


@settings(max_examples=60)
@given(
    glus=st.lists(GLUS, min_size=1, max_size=3),
    opset=st.integers(13, 24),
    naming=st.sampled_from(["anonymous", "torchscript", "dynamo"]),
    dtype=st.sampled_from([np.float32, np.float16]),
    as_nodes=st.booleans(),
)
def test_every_glu_is_found(
    glus: list[Glu], opset: int, naming: Naming, dtype: type[np.generic], as_nodes: bool
) -> None:
    opset = max(opset, *(ACTIVATIONS[glu.activation].opset for glu in glus))
    found = found_in(glu_model(*glus, opset=opset, naming=naming, dtype=dtype, constants_as_nodes=as_nodes))
    assert [block.kind for block in found.blocks] == [ACTIVATIONS[glu.activation].kind for glu in glus]
    assert [block.layer for block in found.blocks] == list(range(len(glus)))
    assert found.unmatched == []
    for layer, glu in enumerate(glus):
        sites = [site for site in found.sites if site.layer == layer]
        inner = glu.inner if glu.packing == "separate" else 2 * glu.inner
        fused = ["glu_gate_up"] if glu.packing != "separate" else ["glu_gate", "glu_up"]
        assert [site.role.value for site in sites] == [*fused, "glu_down"]
        assert [site.shape for site in sites] == [(glu.width, inner)] * len(fused) + [(glu.inner, glu.width)]


class TestNames:
    def test_module_paths(self) -> None:
        found = found_in(glu_model(Glu(), Glu(packing="split"), naming="dynamo"))
        assert [site.key for site in found.sites] == [
            "model.layers.0.mlp.gate_proj",
            "model.layers.0.mlp.up_proj",
            "model.layers.0.mlp.down_proj",
            "model.layers.1.mlp.gate_up_proj",
            "model.layers.1.mlp.down_proj",
        ]
        assert found.blocks[1].gate == found.blocks[1].up == "model.layers.1.mlp.gate_up_proj"

    def test_node_names(self) -> None:
        found = found_in(glu_model(Glu(), naming="torchscript"))
        assert found.blocks[0].down == "model.layers.0.mlp.down_proj"
        (down,) = (site for site in found.sites if site.key == found.blocks[0].down)
        assert (down.layer, down.node) == (0, "/model/layers.0/mlp/down_proj/MatMul")

    def test_modules_whose_names_begin_like_a_product(self) -> None:
        model = glu_model(Glu(), naming="torchscript")
        for node in model.graph.node:
            node.name = node.name.replace("/mlp/", "/GemmaMLP/")
        assert found_in(model).blocks[0].down == "model.layers.0.GemmaMLP.down_proj"

    def test_anonymous(self) -> None:
        found = found_in(glu_model(Glu(), Glu()))
        assert all(site.key == site.node for site in found.sites)
        assert len({site.key for site in found.sites}) == 6

    def test_module_with_several_products(self) -> None:
        b = Builder(naming="dynamo", module="model.layers.3.both")
        hidden = b.linear(b.linear("x", 4, 4), 4, 4)
        b.op("Neg", hidden, outputs=["y"])
        found = found_in(b.model({"x": (FLOAT, [2, 4])}, {"y": (FLOAT, [2, 4])}))
        assert [site.key for site in found.sites] == [f"model.layers.3.both/{site.node}" for site in found.sites]
        assert {site.layer for site in found.sites} == {3}

    def test_metadata_that_is_not_what_torch_writes(self) -> None:
        model = glu_model(Glu(), naming="dynamo")
        for node, text in zip(model.graph.node, ["(", "3", "[]", "['']", "[" * 5000, "['', None, '']"], strict=False):
            node.metadata_props[0].value = text
        assert len(found_in(model).blocks) == 1


ATTENTION: list[tuple[AttentionForm, int, int]] = [
    ("plain", 13, 2),
    ("plain", 21, 1),
    ("qk_norm", 21, 1),
    ("packed", 21, 2),
    ("packed", 18, 1),
    ("GroupQueryAttention", 21, 1),
    ("MultiHeadAttention", 21, 2),
    ("Attention", 23, 1),
    ("Attention", 24, 2),
]


class TestDecoders:
    @pytest.mark.parametrize("rope", [True, False])
    @pytest.mark.parametrize(("attention", "opset", "kv_heads"), ATTENTION)
    def test_attention(self, attention: AttentionForm, opset: int, kv_heads: int, rope: bool) -> None:
        found = found_in(decoder(Decoder(attention=attention, kv_heads=kv_heads, rope=rope), opset=opset))
        projections = ["attn_qkv"] if attention == "packed" else ["attn_q", "attn_k", "attn_v"]
        layer = [*projections, "attn_o", "glu_gate", "glu_up", "glu_down"]
        assert roles(found) == [*layer, *layer, "lm_head"]
        assert [site.layer for site in found.sites] == [0] * len(layer) + [1] * len(layer) + [None]
        assert found.unmatched == []

    @pytest.mark.parametrize("naming", ["anonymous", "torchscript", "dynamo"])
    def test_layers(self, naming: Naming) -> None:
        found = found_in(decoder(Decoder(layers=3), naming=naming))
        assert [site.layer for site in found.sites] == [*sorted([0, 1, 2] * 7), None]

    @pytest.mark.parametrize("capped", [True, False])
    @pytest.mark.parametrize("tied", [True, False])
    def test_head(self, tied: bool, capped: bool) -> None:
        found = found_in(decoder(Decoder(tied=tied, capped=capped, vocab=20)))
        head = found.sites[-1]
        assert (head.role, head.shape, head.key) == (Role.LM_HEAD, (8, 20), "lm_head")

    @pytest.mark.parametrize("naming", ["torchscript", "dynamo"])
    def test_experts(self, naming: Naming) -> None:
        found = found_in(decoder(Decoder(experts=3), naming=naming))
        assert Counter(roles(found)) == {
            "attn_q": 2,
            "attn_k": 2,
            "attn_v": 2,
            "attn_o": 2,
            "router": 2,
            "lm_head": 1,
            "expert_gate": 6,
            "expert_up": 6,
            "expert_down": 6,
        }
        assert [s.expert for s in found.sites if s.role is Role.EXPERT_DOWN] == [0, 1, 2] * 2

    def test_experts_without_names(self) -> None:
        found = found_in(decoder(Decoder(experts=3), naming="anonymous"))
        assert [block.layer for block in found.blocks] == [0, 0, 0, 1, 1, 1]
        assert [s.layer for s in found.sites] == [0] * 14 + [1] * 14 + [None]

    def test_half_precision(self) -> None:
        found = found_in(decoder(Decoder(kv_heads=1), dtype=np.float16))
        assert len(found.blocks) == 2
        assert Role.OTHER not in {site.role for site in found.sites}

    def test_nothing_is_changed(self) -> None:
        graph = ir.from_proto(decoder())
        Canonicalize()(graph)
        before = ir.to_proto(graph).SerializeToString()
        identify(graph)
        assert ir.to_proto(graph).SerializeToString() == before


def feed_forward(b: Builder) -> str:
    return b.linear(ACTIVATIONS["erf_half_last"].write(b, b.linear("x", 4, 6)), 6, 4)


def squeeze_excite(b: Builder) -> str:
    x = b.linear("x", 4, 6)
    pooled = b.op("ReduceMean", x, b.const([0], np.int64))
    gate = b.op("Sigmoid", b.linear(b.op("Relu", b.linear(pooled, 6, 2)), 2, 6))
    return b.linear(b.op("Mul", x, gate), 6, 4)


class TestNoGlu:
    @pytest.mark.parametrize("write", [feed_forward, squeeze_excite, lambda b: b.linear(b.op("Mul", "x", "x"), 4, 4)])
    def test_no_block(self, write: Write) -> None:
        b = Builder()
        b.op("Neg", write(b), outputs=["y"])
        found = found_in(b.model({"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}))
        assert found.blocks == []
        assert {site.role for site in found.sites} == {Role.OTHER}


@pytest.mark.parametrize("form", LINEAR_FORMS)
@pytest.mark.parametrize("packing", PACKINGS)
def test_weights_are_seen_through(form: LinearForm, packing: Packing) -> None:
    model = glu_model(Glu(form=form, packing=packing, bias=True))
    names = {tensor.name for tensor in model.graph.initializer}
    graph = ir.from_proto(model)
    Canonicalize()(graph)
    assert weights_of(identify(graph), graph) <= names


@pytest.mark.parametrize(("dtype", "stored"), [(np.float32, Precision.FP32), (np.float16, Precision.FP16)])
def test_formats_of_weights(dtype: type[np.generic], stored: Precision) -> None:
    found = found_in(glu_model(Glu(), dtype=dtype))
    assert found.stored == dict.fromkeys((site.key for site in found.sites), stored)
