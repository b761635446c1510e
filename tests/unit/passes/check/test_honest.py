"""What is applied as planned is taken, however the source is built, and the source stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.files.save import save_model
from spq_graph.passes.forms.encode import Encoded, unlike
from spq_graph.passes.forms.storages import Blocks, Fp8Panels
from spq_graph.terms.errors import CheckError
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES, Target
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Builder, Glu
from tests.support.inserting import activations, plan_for

SHAPE = Decoder(layers=1, rope=False, glu=Glu(width=32, inner=33, bias=True))


def bytes_of(model: ir.Model) -> bytes:
    found: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("target", PROFILES)
def test_a_graph_that_many_plans_are_applied_to_stays_what_it_was(
    tmp_path: Path, target: Target, dtype: type[np.floating]
) -> None:
    """A copy shares what a type is with its original: writing into one would change both."""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(decoder(SHAPE, dtype=dtype, opset=21)), path)
    source, profile = prepared(path), PROFILES[target]
    before = bytes_of(source.graph)
    for precision in filter(profile.allows, Precision):
        plan = plan_for(path, token_feeds(), precision, target=target)
        for runs_on in (profile, profile.emulation):
            first, second = (bytes_of(apply_plan(source, plan, runs_on)) for _ in range(2))
            assert first == second, precision
            assert bytes_of(source.graph) == before, precision


def test_two_products_behind_one_transpose(tmp_path: Path) -> None:
    builder = Builder()
    weight = builder.op("Transpose", builder.const(builder.random(32, 32)), perm=[1, 0])
    builder.op("MatMul", builder.op("MatMul", "x", weight), weight, outputs=["y"])
    path = tmp_path / "model.onnx"
    onnx.save(builder.model({"x": (1, ["n", 32])}, {"y": (1, ["n", 32])}), path)
    model = apply_plan(path, plan_for(path, {"x": activations(5, 32)}, Precision.INT8))
    assert "Transpose" not in [node.op_type for node in model.graph]


def test_a_weight_that_is_stored_in_another_type(tmp_path: Path) -> None:
    """As autocast leaves it: float32 in the file, and a Cast to what the graph computes in."""
    model = decoder(SHAPE, dtype=np.float16, opset=21)
    head = next(node for node in model.graph.node if "logits" in node.output)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == head.input[1])
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(np.float32), weight.name))
    cast = helper.make_node("Cast", [weight.name], ["half"], to=onnx.TensorProto.FLOAT16, name="autocast")
    model.graph.node.insert(list(model.graph.node).index(head), cast)
    head.input[1] = "half"
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    for precision in (Precision.FP16, Precision.FP32, Precision.INT8):
        apply_plan(path, plan_for(path, token_feeds(), precision))


@pytest.mark.parametrize("again", [Precision.FP32, Precision.INT8, Precision.FP16])
def test_a_source_that_we_wrote(tmp_path: Path, again: Precision) -> None:
    """In half precision it holds no codes, and is a source as any other."""
    path, made = tmp_path / "model.onnx", tmp_path / "made.onnx"
    onnx.save(decoder(SHAPE, opset=21), path)
    onnx.save(ir.to_proto(apply_plan(path, plan_for(path, token_feeds(), Precision.FP16))), made)
    apply_plan(made, plan_for(made, token_feeds(), again))


@pytest.mark.parametrize(("kind", "filler"), [(Fp8Panels, 0x7F), (Blocks, 255)])
def test_what_fills_up_a_weight_is_looked_at(tmp_path: Path, kind: type[Fp8Panels | Blocks], filler: int) -> None:
    """A NaN where panels end would be in every sum."""
    builder = Builder()
    builder.op("MatMul", "x", builder.const(builder.random(33, 20)), outputs=["y"])
    path = tmp_path / "model.onnx"
    onnx.save(builder.model({"x": (1, ["n", 33])}, {"y": (1, ["n", 20])}), path)
    precision = Precision.W8FP8A16 if kind is Fp8Panels else Precision.W8A8_BLOCK
    model = apply_plan(path, plan_for(path, {"x": activations(5, 33)}, precision))
    [made] = [v.const_value for v in model.graph.initializers.values() if isinstance(v.const_value, Encoded)]
    stored = made.numpy().copy()
    assert unlike(made.storage, ir.tensor(stored, dtype=made.dtype)) is None
    raw = stored.view(np.uint8)
    empty = np.asarray(made.storage.pack(np.ones((33, 20), dtype=stored.dtype))).view(np.uint8)
    filled = made.storage.pack(np.zeros((33, 20), dtype=stored.dtype)).view(np.uint8) == empty
    assert filled.any()
    raw[filled] = filler
    assert "what fills up" in (unlike(made.storage, ir.tensor(stored, dtype=made.dtype)) or "")


def test_what_is_packed_wrongly_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Builder()
    builder.op("MatMul", "x", builder.const(builder.random(33, 20)), outputs=["y"])
    path = tmp_path / "model.onnx"
    onnx.save(builder.model({"x": (1, ["n", 33])}, {"y": (1, ["n", 20])}), path)
    model = apply_plan(path, plan_for(path, {"x": activations(5, 33)}, Precision.W8FP8A16))
    plain = Fp8Panels.pack
    monkeypatch.setattr(Fp8Panels, "pack", lambda self, codes: np.roll(plain(self, codes), 1))
    with pytest.raises(CheckError, match="what was packed of a weight does not hold its codes"):
        save_model(model, tmp_path / "out.onnx")
