"""Static INT8 sites with an outlier branch as spq::Int8MatMulBranch, beside the same in plain nodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from spq_graph.passes.check.target import broken_rules
from spq_graph.passes.files.read import load_graph
from spq_graph.passes.forms.reading import precision_of
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES
from tests.support.decoder_graphs import SHAPES, Decoder, decoder, token_feeds
from tests.support.graphs import Array
from tests.support.inserting import activations, applied, plan_for
from tests.support.inserting_fp8 import product
from tests.support.operator_files import LIBRARY, session

LIBRARIES = [False, True] if LIBRARY is not None else [False]
OPERATOR = "Int8MatMulBranch"


def results(path: Path, feeds: dict[str, Array]) -> list[Array]:
    """The first result without the library, and with it."""
    return [session(onnx.load(path), library=library).run(None, feeds)[0] for library in LIBRARIES]


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_decoders(tmp_path: Path, shape: Decoder, dtype: Any) -> None:
    """It is what plain nodes compute, and read back as what the plan says."""
    path, feeds = tmp_path / "model.onnx", token_feeds()
    onnx.save(decoder(shape, dtype=dtype), path)
    floating = Precision.FP32 if dtype is np.float32 else Precision.FP16
    own, plain = (
        plan_for(path, feeds, lambda s: floating if s.role.left_alone else Precision.INT8, peeled=3, target=target)
        for target in ("cpu", "portable")
    )
    made, nodes = applied(path, own), applied(path, plain, "portable.onnx")
    planned = [site for site in own.sites if site.precision is Precision.INT8]
    assert operators(made)[OPERATOR] == len(planned)
    assert operators(made)["QuantizeLinear"] == operators(nodes)[OPERATOR] == 0
    graph = load_graph(made)
    found = {node.name: precision_of(node) for node in graph.graph}
    assert {found[site.node] for site in planned} == {Precision.INT8}
    assert broken_rules(graph, PROFILES["cpu"]) == []
    wanted, *_ = results(nodes, feeds)
    # A last bit of an activation may make another code of it, and of float16 there are few.
    most = 0.01 if dtype is np.float32 else 0.03
    for y in results(made, feeds):
        np.testing.assert_allclose(y.astype(np.float64), wanted, atol=most * np.abs(wanted).max())


@pytest.mark.parametrize("weights", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("way", ["asymmetric", "symmetric"])
def test_one_product_is_the_same_sums(tmp_path: Path, weights: str, way: str) -> None:
    path, _ = product(tmp_path, 40, 70)
    x = activations(9, 40)
    x[:, 7] *= 50
    settings = {"weights": weights, "activations": way, "peeled": 1}
    made, nodes = (
        applied(path, plan_for(path, {"x": x}, Precision.INT8, target=target, **settings), f"{target}.onnx")
        for target in ("cpu", "portable")
    )
    wanted, *_ = results(nodes, {"x": x})
    for y in results(made, {"x": x}):
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(("bits", "peeled"), [(6, 2), (8, 0)])
def test_fewer_bits_and_no_branch_stay_as_they_were(tmp_path: Path, bits: int, peeled: int) -> None:
    path, _ = product(tmp_path, 40, 70)
    made = applied(path, plan_for(path, {"x": activations(9, 40)}, Precision.integer(bits), peeled=peeled))
    assert (operators(made)[OPERATOR], operators(made)["QuantizeLinear"]) == (0, 1)
