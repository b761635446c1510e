"""Weights that are no numbers are refused; masks of -inf are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from spq_graph.passes.adapt.prepared import canonical
from spq_graph.passes.find.identify import identify
from spq_graph.passes.find.results import largest_results
from spq_graph.passes.find.sound import refuse_broken_weights
from spq_graph.terms.errors import GraphError
from tests.support.decoders import write_decoder
from tests.support.halves import rewritten

TYPES = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16]
DOWN = "layers.0.mlp.down_proj"


def checked(path: Path, into: int, name: str, value: float) -> None:
    """Refuse what a decoder becomes of which one number of a weight is another."""
    rewritten(write_decoder(path, layers=1), into=into)
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    array.reshape(-1)[-1] = value
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    graph = canonical(path)
    refuse_broken_weights(graph, identify(graph).sites, "here")


@pytest.mark.parametrize("into", TYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("name", "told"),
    [(f"{DOWN}.weight", f" of {DOWN} is NaN"), ("embed_tokens.weight", "'embed_tokens.weight' is NaN")],
)
def test_weights(tmp_path: Path, into: int, value: float, name: str, told: str) -> None:
    with pytest.raises(GraphError, match=told) as caught:
        checked(tmp_path / "model.onnx", into, name, value)
    assert caught.value.where == "here"


@pytest.mark.parametrize("into", TYPES)
def test_a_mask_may_hold_infinity_and_no_nan(tmp_path: Path, into: int) -> None:
    checked(tmp_path / "model.onnx", into, "causal", -np.inf)
    checked(tmp_path / "model.onnx", into, f"{DOWN}.weight", float(np.finfo(np.float16).max))
    with pytest.raises(GraphError, match="'causal' is NaN or infinite"):
        checked(tmp_path / "model.onnx", into, "causal", np.nan)


def test_no_result_is_larger_than_its_bound(tmp_path: Path) -> None:
    graph = canonical(write_decoder(tmp_path / "model.onnx", layers=1))
    sites = identify(graph).sites
    generator = np.random.default_rng(0)
    channels = {site.key: generator.uniform(0, 9, site.shape[0]).astype(np.float32) for site in sites[:-1]}
    found = largest_results(graph, sites, channels)
    assert set(found) == set(channels)  # of the last one nothing is known
    weights = {name: value.const_value.numpy() for name, value in graph.graph.initializers.items() if value.const_value}
    for key, most in channels.items():
        weight = weights[f"{key}.weight"]
        some = generator.uniform(-1, 1, (200, len(most))) * most
        assert np.abs(some @ weight).max() <= found[key]
        worst = np.sign(weight) * most[:, None]
        assert found[key] == pytest.approx((worst * weight).sum(axis=0).max(), rel=1e-5)
