"""The reductions say what numpy says, at every opset and precision, with and without known shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from spq_graph.passes.canon.canonicalize import Canonicalize
from spq_graph.passes.files.save import save_model
from spq_graph.passes.find.identify import identify
from spq_graph.passes.observe import FINITE_CHECK, Observe, ObserveFaults
from spq_graph.terms.errors import GraphError
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.inserting import run


def canonical(model: onnx.ModelProto) -> ir.Model:
    graph = ir.from_proto(model)
    Canonicalize()(graph)
    return graph


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize(("opset", "dtype"), [(13, np.float32), (17, np.float16), (18, np.float32), (24, np.float32)])
def test_reductions(tmp_path: Path, opset: int, dtype: type[np.generic], described: bool) -> None:
    model = decoder(Decoder(kv_heads=1), opset=opset, dtype=dtype)
    if described:
        model = onnx.shape_inference.infer_shapes(model)
    graph = canonical(model)
    values = list(dict.fromkeys(site.input for site in identify(graph).sites))
    proto = ir.to_proto(graph)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    known = dict(zip(values, run(proto, token_feeds(), values), strict=True))

    observe = Observe(values)
    observe(graph)
    path = tmp_path / "observing.onnx"
    save_model(graph, path)
    assert [probe.value for probe in observe.probes] == values
    for probe in observe.probes:
        x = known[probe.value].astype(np.float32)
        low, high, channel_low, channel_high = run(path, token_feeds(), probe.outputs)
        for found, expected in (
            (low, x.min(axis=-1)),
            (high, x.max(axis=-1)),
            (channel_low, x.min(axis=-2)),
            (channel_high, x.max(axis=-2)),
        ):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=2e-3 if dtype is np.float16 else 1e-5)
    assert np.isfinite(run(path, token_feeds(), [FINITE_CHECK])[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(tmp_path: Path, value: float) -> None:
    model = decoder()
    weight = next(t for t in model.graph.initializer if list(t.dims) == [8, 12])  # the first gate
    array = onnx.numpy_helper.to_array(weight).copy()
    array[0, 0] = value
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    graph = canonical(model)
    values = list(dict.fromkeys(site.input for site in identify(graph).sites))
    ObserveFaults(values)(graph)
    save_model(graph, tmp_path / "finite.onnx")
    told = run(tmp_path / "finite.onnx", token_feeds())
    finite = [not lost and bool(np.isfinite([low, high]).all()) for _, lost, low, high in told]
    assert all(np.isfinite(size) for size, *_ in told)
    assert finite == [True] * 3 + [False] * (len(values) - 3)  # all up to the input of the first down


def test_value_of_another_model() -> None:
    with pytest.raises(GraphError, match="the graph holds no value 'elsewhere'"):
        Observe(["elsewhere"])(canonical(decoder()))
