"""Calls that the operator's library refuses are refused of the file, for the function takes some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.base.fp8_calls import wrong_fp8_calls
from spq_graph.passes.check.target import broken_rules
from spq_graph.passes.numbers.fp8 import E4M3, E5M2
from spq_graph.terms.errors import GraphError
from spq_graph.terms.targets import PROFILES
from tests.support.operator_files import Product, random_codes

K, N = 7, 35


def small(**changes: Any) -> Product:
    return Product(random_codes(K, N), np.full(N, 0.5, np.float32), **changes)


def scale_of(shape: tuple[int, ...], *, name: str = "b_scale", value: float = 0.5) -> dict[str, onnx.TensorProto]:
    return {name: numpy_helper.from_array(np.full(shape, value, np.float32), name)}


def told(product: Product) -> list[str]:
    return list(wrong_fp8_calls(ir.from_proto(product.model())))


@pytest.mark.parametrize("activations", [None, E4M3, E5M2])
@pytest.mark.parametrize("weights", [E4M3, E5M2])
@pytest.mark.parametrize("b_scale", [(), (1,), (1, 1), (N,)])
def test_what_is_right(activations: Any, weights: Any, b_scale: tuple[int, ...]) -> None:
    assert told(small(activations=activations, weights=weights, tensors=scale_of(b_scale))) == []
    assert told(small(tensors=scale_of((N,), value=0.0))) == []


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "K of -1": ({"attributes": {"K": -1}}, "both positive; they are -1 and 35"),
    "K of 0": ({"attributes": {"K": 0}}, "both positive; they are 0 and 35"),
    "no K": ({"attributes": {"K": None}}, "both positive; they are None and 35"),
    "N huge": ({"attributes": {"N": 2**40}}, "both positive; they are 7 and 1099511627776"),
    "another K": ({"attributes": {"K": 8}}, "its activation has 7 columns, and its weight K = 8 rows"),
    "another N": ({"attributes": {"N": 70}}, r"B is [2, 4, 64], but K = 7 and N = 70 want panels [3, 4, 64]"),
    "FLOAT8E4M3FNUZ": ({"attributes": {"a_type": 18}}, "attribute a_type must be 1, 17 (FLOAT8E4M3FN) or 19"),
    "float16": ({"attributes": {"a_type": 10}}, "it is 10"),
    "no a_scale": ({"a_scale": None}, "it has not the four inputs"),
    "[1, N]": ({"tensors": scale_of((1, N))}, "b_scale is [1, 35]; it must hold one number or N = 35"),
    "[K, N]": ({"tensors": scale_of((K, N))}, "b_scale is [7, 35]"),
    "[N - 1]": ({"tensors": scale_of((N - 1,))}, "b_scale is [34]"),
    "b_scale inf": ({"tensors": scale_of((N,), value=np.inf)}, "b_scale holds inf; it must be finite"),
    "b_scale NaN": ({"tensors": scale_of((), value=np.nan)}, "b_scale holds nan; it must be finite"),
    "weights beyond float32": ({"tensors": scale_of((), value=1e36)}, "b_scale holds 1e+36; it must be finite, and so"),
    "a_scale unused": ({"a_scale": np.float32(2)}, "a_scale is 2; where activations are not rounded it must be 1"),
    "rank of a_scale": ({"tensors": scale_of((1, 1), name="a_scale", value=1)}, "a single number; it is [1, 1]"),
    "B of bytes": (
        {"tensors": {"B": onnx.helper.make_tensor("B", TensorProto.UINT8, (2, 4, 64), bytes(512), raw=True)}},
        "B is UINT8, not FLOAT8E4M3FN or FLOAT8E5M2",
    ),
    **{
        f"a_scale {value}": ({"activations": E5M2, "a_scale": np.float32(value)}, f"a_scale is {value}; it must be po")
        for value in ("0", "-1", "nan", "inf")
    },
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, what: str) -> None:
    changes, says = WRONG[what]
    product = small(**changes)
    [text] = told(product)
    assert text.startswith("product: ")
    assert says in text
    model = product.model()
    assert text in broken_rules(ir.from_proto(model), PROFILES["cpu"])
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(GraphError) as caught:
        prepared(tmp_path / "model.onnx")
    assert says in caught.value.what
    assert caught.value.where == str(tmp_path / "model.onnx")
    assert "spq-graph apply" in caught.value.remedy
