"""Inspection of a file with FP8 sites: they are listed like any other, and the file is known to be quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from spq_graph.errors import GraphError
from spq_graph.inspection import inspect_path
from spq_graph.passes.annotate import PREFIX
from spq_graph.passes.editor import ADDED
from spq_graph.passes.graph import load_graph
from spq_graph.passes.quantized import refuse_quantized
from spq_graph.recipe import Precision
from spq_graph.sites import Role, Site
from tests.decoder_graphs import Decoder, decoder, token_feeds
from tests.graphs import Glu
from tests.inserting import applied, plan_for

CHOSEN = {
    Role.GLU_DOWN: Precision.FP8_E5M2,
    Role.ATTN_O: Precision.W8FP8A16,
    Role.GLU_UP: Precision.FP8_E4M3,
    Role.LM_HEAD: Precision.FP32,
}


def choose(site: Site) -> Precision:
    return CHOSEN.get(site.role, Precision.INT8)


def without_notes(path: Path) -> Path:
    """The same file without the view of its plan, so that the graph alone must tell."""
    model = onnx.load(path)
    for node in model.graph.node:
        kept = [p for p in node.metadata_props if not p.key.startswith(PREFIX) or p.key == ADDED]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, path.with_name("bare.onnx"))
    return path.with_name("bare.onnx")


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("opset", [17, 21])
def test_every_site_is_listed(tmp_path: Path, dtype: type[np.generic], noted: bool, opset: int) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(glu=Glu(width=32, inner=33, bias=True)), dtype=dtype, opset=opset), path)
    plan = plan_for(path, token_feeds(), choose)
    made = applied(path, plan)
    found = inspect_path(made if noted else without_notes(made))
    assert found.glu_blocks == 2
    assert not found.unmatched
    listed = [(s.key, s.role, s.site.layer, s.shape, s.precision) for s in found.sites]
    # Without notes a head that is to be computed in fp32 shows what it is stored in.
    head = "fp16" if dtype is np.float16 and not noted else "fp32"
    assert listed == [
        (s.key, s.role, s.layer, s.shape, head if s.role is Role.LM_HEAD else s.precision) for s in plan.sites
    ]


def test_is_not_taken_for_a_source(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1)), path)
    made = applied(path, plan_for(path, token_feeds(), Precision.W8FP8A16))
    with pytest.raises(GraphError, match=r"quantized already \(8 Fp8MatMul\)"):
        refuse_quantized(load_graph(made), made)
