"""A graph in bfloat16 runs on a CPU as the same weights in float32 do, and stays stored as it is."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.passes.adapt.bfloat16 import WidenBfloat16, holds_bfloat16
from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.find.identify import identify
from spq_graph.passes.pieces.split import split
from spq_graph.runtime.sessions.segmented import SegmentedRunner
from spq_graph.runtime.sessions.session import Runner
from spq_graph.workbench.streams import open_stream, open_whole
from tests.support.command import done
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.graphs import Glu

SHAPE = Decoder(layers=2, glu=Glu(width=32, inner=64), vocab=64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A decoder in bfloat16, and the same weights in a float32 graph."""
    folder = tmp_path_factory.mktemp("bfloat16")
    half, single = folder / "half.onnx", folder / "single.onnx"
    proto = decoder(SHAPE, dtype=ml_dtypes.bfloat16)
    onnx.save(proto, half)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.BFLOAT16:
            widened = onnx.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(widened, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    onnx.save(proto, single)
    return half, single


def test_logits_are_those_of_the_same_weights_in_float32(models: tuple[Path, Path]) -> None:
    half, single = models
    feeds = token_feeds(vocab=64)
    batch = (feeds["input_ids"], feeds["attention_mask"])
    (found,) = open_stream(half).stream([batch])
    np.testing.assert_allclose(found, Runner(single).logits(*batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limit", [None, 1000])
def test_what_needs_it_whole_gets_what_runs_of_it(models: tuple[Path, Path], tmp_path: Path, limit: int | None) -> None:
    source = prepared(models[0])
    stream = open_stream(source, limit)
    assert isinstance(stream, SegmentedRunner)
    assert (len(split(source.copy(), source.path, limit).segments) > 1) is (limit is not None)
    batch = (token_feeds(vocab=64)["input_ids"], token_feeds(vocab=64)["attention_mask"])
    whole, (expected,) = open_whole(source, stream.bytes, tmp_path), stream.stream([batch])
    np.testing.assert_allclose(whole.logits(*batch), expected, rtol=1e-4, atol=1e-5)


def test_weights_stay_stored_in_bfloat16(models: tuple[Path, Path]) -> None:
    graph = load_graph(models[0])
    Canonicalize()(graph)
    before = {s.key: s.shape for s in identify(graph).sites}
    assert holds_bfloat16(graph)
    assert WidenBfloat16()(graph).modified
    stored = [v.const_value.dtype for v in graph.graph.initializers.values() if v.const_value is not None]
    assert ir.DataType.BFLOAT16 in stored
    assert all(v.dtype is not ir.DataType.BFLOAT16 for v in (*graph.graph.inputs, *graph.graph.outputs))
    assert {s.key: s.shape for s in identify(graph).sites} == before
    assert not WidenBfloat16()(load_graph(models[1])).modified


def test_is_quantized_and_runs(models: tuple[Path, Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "ids.npz", input_ids=np.random.default_rng(0).integers(0, 64, (8, 16)))
    out = tmp_path / "out"
    done("quantize", models[0], "-o", out, "--calibration", tmp_path / "ids.npz", "--no-eval")
    feeds = token_feeds(vocab=64)
    batch = (feeds["input_ids"], feeds["attention_mask"])
    found, expected = Runner(out / "model.onnx").logits(*batch), Runner(models[1]).logits(*batch)
    assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)
