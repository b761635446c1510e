"""The residual stream behind a product, in the ways that families add to it."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from spq_graph.passes.find.identify import identify
from spq_graph.passes.find.residual import residual_behind
from spq_graph.terms.site import Role
from tests.numeric.test_observe import canonical
from tests.support.decoder_graphs import Decoder, decoder
from tests.support.graphs import Glu

HEADER = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'
ONES = "{1, 1, 1, 1}"


def behind(text: str) -> str | None:
    """Of `y`, which a product gives, in a graph in ONNX's own words."""
    constants = f"<float[4] w = {ONES}, float[4] b = {ONES}>"
    model = ir.from_onnx_text(f"{HEADER} g {text.replace('CONSTANTS', constants)}")
    value = next(v for node in model.graph for v in node.outputs if v.name == "y")
    found = residual_behind(value)
    return found.name if found is not None else None


@pytest.mark.parametrize("glu", [Glu(), Glu(bias=True, form="gemm"), Glu(form="transpose")])
def test_a_decoders_stream(glu: Glu) -> None:
    """What the next layer's norm reads; the last layer's is what the last norm does."""
    graph = canonical(decoder(Decoder(glu=glu, layers=3)))
    nodes = {node.name: node for node in graph.graph}
    downs = [site for site in identify(graph).sites if site.role is Role.GLU_DOWN]
    streams = [residual_behind(nodes[site.node].outputs[0]) for site in downs]
    assert len(streams) == 3
    for stream in streams:
        assert stream is not None
        assert stream.producer() is not None
        assert {use.node.op_type for use in stream.uses()} >= {"Mul", "Div"}, "a norm reads it"
    assert len(set(streams)) == 3


def test_behind_a_norm_as_gemma_has_it() -> None:
    graph = """(float[2, 4] x, float[4, 4] k, float[2, 4] h) => (float[2, 4] out) CONSTANTS {
        y = MatMul(x, k)
        n = RMSNormalization(y, w)
        s = Add(h, n)
        m = RMSNormalization(s, w)
        out = Add(s, m)
    }"""
    assert behind(graph) == "s"


def test_beside_attention_that_runs_in_parallel() -> None:
    graph = """(float[2, 4] x, float[4, 4] k, float[2, 4] h, float[2, 4] a) => (float[2, 4] out) CONSTANTS {
        y = MatMul(x, k)
        z = Add(y, b)
        both = Add(a, z)
        s = Add(both, h)
        m = RMSNormalization(s, b)
        out = Add(s, m)
    }"""
    assert behind(graph) == "s"


@pytest.mark.parametrize(("outputs", "found"), [("n, mean, var, s", "s"), ("n", None)])
def test_a_sum_and_its_norm_in_one(outputs: str, found: str | None) -> None:
    graph = f"""(float[2, 4] x, float[4, 4] k, float[2, 4] h) => (float[2, 4] n) CONSTANTS {{
        y = MatMul(x, k)
        {outputs} = com.microsoft.SkipSimplifiedLayerNormalization(h, y, w)
    }}"""
    assert behind(graph) == found


def test_without_a_sum_there_is_none() -> None:
    graph = """(float[2, 4] x, float[4, 4] k) => (float[2, 4] out) CONSTANTS {
        y = MatMul(x, k)
        z = Add(y, b)
        out = Softmax(z)
    }"""
    assert behind(graph) is None
