"""What names tell of modules and layers, where the exporter's metadata is gone."""

from __future__ import annotations

import pytest
from onnx import TensorProto

from tests.support.decoder_graphs import Decoder, decoder
from tests.support.finding import found_in
from tests.support.graphs import Builder

FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("/lm_head/MatMul/MatMulScaleFusion/", "lm_head"),
        ("/transformer/h.0/attn/c_attn/Gemm_2", "transformer.h.0.attn.c_attn"),
        ("/model/layers.0/moe/experts.3/w1/MatMul", "model.layers.0.moe.experts.3.w1"),
        ("/MatMul", "/MatMul"),
        ("MatMul_7", "MatMul_7"),
        ("/../../etc/MatMul", "/../../etc/MatMul"),
        ("//a/MatMul", "//a/MatMul"),
        ("/a\nb/MatMul", "/a\nb/MatMul"),
    ],
)
def test_paths_in_node_names(name: str, key: str) -> None:
    b = Builder()
    b.op("MatMul", "x", b.const(b.random(4, 4)), name=name, outputs=["y"])
    (site,) = found_in(b.model({"x": (FLOAT, [2, 4])}, {"y": (FLOAT, [2, 4])})).sites
    assert (site.key, site.node) == (key, name)


def test_layers_where_only_some_names_are_left() -> None:
    """A tool that joins products with their biases renames those; the others of a layer tell its number."""
    model = decoder(Decoder(layers=3), naming="dynamo")
    named = found_in(model)
    for node in model.graph.node:
        if any(entry.value.count("q_proj") or entry.value.count("o_proj") for entry in node.metadata_props):
            del node.metadata_props[:]
    found = found_in(model)
    assert [(s.role, s.layer) for s in found.sites] == [(s.role, s.layer) for s in named.sites]
    assert len([s for s in found.sites if s.key == s.node]) == 6
