"""Where a number that is too large does harm, and which float16 values may grow past what float16 holds."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, parser

from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.find.flow import Harm, harms, held_in_half, in_half
from tests.support.decoders import write_decoder
from tests.support.halves import rewritten


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> ir.Graph:
    path = write_decoder(tmp_path_factory.mktemp("flow") / "model.onnx", layers=1)
    return canonical(rewritten(path)).graph


def by_name(found: dict[ir.Value, Harm]) -> dict[str, Harm]:
    return {value.name or "": harm for value, harm in found.items()}


def test_masks_follow_from_no_weight(half: ir.Graph) -> None:
    found = by_name(harms(half))
    assert {"bias.out", "square.out", "scaled.out", "row.out"}.isdisjoint(found)
    assert found["embed_tokens.out"] is Harm.ANY


def test_scores_do_harm_where_they_are_positive(half: ir.Graph) -> None:
    found = by_name(harms(half))
    for name in ("scores", "scaled", "masked"):
        assert found[f"layers.0.self_attn.{name}.out"] is Harm.POSITIVE
    assert found["layers.0.self_attn.softmax.out"] is Harm.ANY
    assert found["layers.0.mlp.gate_proj.out"] is Harm.ANY


def test_what_is_watched(half: ir.Graph) -> None:
    found = set(by_name(held_in_half(half)))
    projections = {f"self_attn.{part}_proj" for part in "qkvo"} | {
        f"mlp.{part}_proj" for part in ("gate", "up", "down")
    }
    inner = {"self_attn.scores", "self_attn.mixed", "mlp.silu", "mlp.product", "after_attention", "after_mlp"}
    assert found == {f"layers.0.{name}.out" for name in projections | inner} | {"logits"}


def test_types_that_the_graph_does_not_say_follow_from_what_is_read(half: ir.Graph, tmp_path: Path) -> None:
    path = rewritten(write_decoder(tmp_path / "model.onnx", layers=1))
    model = onnx.load(path)
    del model.graph.value_info[:]
    onnx.save(model, path)
    silent = canonical(path).graph
    assert any(value.dtype is None for node in silent for value in node.outputs)
    assert {v.name for v in in_half(silent)} == {v.name for v in in_half(half)}
    assert by_name(held_in_half(silent)) == by_name(held_in_half(half))


def test_nothing_of_it_is_watched_in_float32(tmp_path: Path) -> None:
    assert not held_in_half(canonical(write_decoder(tmp_path / "model.onnx", layers=1)).graph)


def test_what_saturates_and_what_belongs_to_a_norm(tmp_path: Path) -> None:
    """The cube of a tanh Gelu, and the square of a norm, in float16."""
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    gelu (int64[B, L] input_ids) => (float16[B, L, V] logits)
    <float16[8, 4] table, float16[4, 4] weight, float16 half, float16 eps> {
        x = Gather (table, input_ids)
        h = MatMul (x, weight)
        square = Mul (h, h)
        cube = Mul (square, h)
        inner = Add (h, cube)
        tanh = Tanh (inner)
        gated = Mul (h, tanh)
        power = Pow (gated, half)
        mean = ReduceMean <axes = [-1]> (power)
        shifted = Add (mean, eps)
        root = Sqrt (shifted)
        normal = Div (gated, root)
        logits = Mul (normal, gated)
    }
    """.replace("<axes = [-1]>", "")
    model = parser.parse_model(text)
    for tensor, shape in (("table", [8, 4]), ("weight", [4, 4]), ("half", []), ("eps", [])):
        size = 1
        for n in shape:
            size *= n
        old = next((t for t in model.graph.initializer if t.name == tensor), None)
        made = helper.make_tensor(tensor, TensorProto.FLOAT16, shape, [1.0] * size)
        if old is not None:
            old.CopyFrom(made)
        else:
            model.graph.initializer.append(made)
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "gelu.onnx")
    graph = canonical(tmp_path / "gelu.onnx").graph
    found = by_name(harms(graph))
    assert found["cube"] is found["inner"] is Harm.NONE
    assert found["h"] is Harm.ANY
    assert set(by_name(held_in_half(graph))) == {"h", "gated"}
