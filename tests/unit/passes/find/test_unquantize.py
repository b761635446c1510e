"""A quantized graph, looked through: the same sites in the same roles as before it was quantized."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.identify import Identified, identify
from spq_graph.passes.find.unquantize import LookThroughQuantization
from spq_graph.terms.precision import Precision
from spq_graph.terms.site import Role, Site
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu
from tests.support.inserting import Choose, applied, plan_for


def found_in(path: Path) -> Identified:
    model = load_graph(path)
    Canonicalize()(model)
    LookThroughQuantization()(model)
    return identify(model)


MIXED = {
    Role.GLU_DOWN: Precision.W8A8_BLOCK,
    Role.ATTN_O: Precision.FP16,
    Role.GLU_UP: Precision.INT6_IN_8,
    Role.GLU_GATE: Precision.FP8_E5M2,
    Role.ATTN_Q: Precision.W8FP8A16,
}


def mixed(site: Site) -> Precision:
    return MIXED.get(site.role, Precision.INT8)


@pytest.mark.parametrize(
    "precision",
    [
        Precision.INT8,
        Precision.INT5_IN_8,
        Precision.W8A8_BLOCK,
        Precision.W8A16,
        Precision.FP16,
        Precision.FP8_E4M3,
        mixed,
    ],
)
@pytest.mark.parametrize(
    "shape",
    [
        Decoder(kv_heads=1, tied=True),
        Decoder(attention="packed", glu=Glu(packing="split", bias=True, form="transpose")),
        Decoder(experts=2, glu=Glu("erf_half_last")),
        Decoder(attention="GroupQueryAttention", glu=Glu(width=16, between=("Cast",))),
    ],
    ids=["plain", "packed", "experts", "fused"],
)
def test_same_sites(tmp_path: Path, shape: Decoder, precision: Precision | Choose) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(shape), path)
    before = found_in(path)
    made = applied(path, plan_for(path, token_feeds(), precision))
    after = found_in(made)
    assert [(s.key, s.role, s.layer, s.shape, s.expert) for s in after.sites] == [
        (s.key, s.role, s.layer, s.shape, s.expert) for s in before.sites
    ]
    assert after.blocks == before.blocks
    assert after.unmatched == before.unmatched == []
