"""What a mask over pairs of tokens means is read from what follows it, and it is made so that padding harms nobody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from spq_graph.runtime.sessions.masks import MaskForm, mask_forms, pair_mask
from tests.support.graphs import CONTRIB, Builder

ADDED, LOOKS, HIDES = MaskForm.ADDED, MaskForm.LOOKS, MaskForm.HIDES
FLOAT, HALF, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL


def added(b: Builder) -> str:
    return str(b.op("Add", "scores", b.op("Cast", "mask", to=FLOAT)))


def one_minus(b: Builder) -> str:
    turned = b.op("Sub", b.number(1.0), b.op("Cast", "mask", to=FLOAT))
    return str(b.op("Add", "scores", b.op("Mul", turned, b.number(-1e9))))


def minus_one(b: Builder) -> str:
    return str(b.op("Add", "scores", b.op("Mul", b.op("Sub", "mask", b.number(1.0)), b.number(1e9))))


def times_low(b: Builder) -> str:
    return str(b.op("Add", "scores", b.op("Mul", "mask", b.number(-1e9))))


def where_looks(b: Builder) -> str:
    return str(b.op("Where", b.op("Cast", "mask", to=BOOL), "scores", b.number(-1e9)))


def where_hides(b: Builder) -> str:
    return str(b.op("Where", "mask", b.number(-1e9), "scores"))


def turned(b: Builder) -> str:
    return str(b.op("Where", b.op("Not", "mask"), b.number(-np.inf), "scores"))


def equals_zero(b: Builder) -> str:
    zero = b.const(0, np.int64)
    return str(b.op("Where", b.op("Equal", "mask", zero), b.number(-1e9), "scores"))


def combined(b: Builder) -> str:
    both = b.op("And", b.op("Unsqueeze", "mask", b.const([0], np.int64)), b.const(True, np.bool_))
    low = b.op("Expand", b.number(-1e9), b.const([1], np.int64))
    return str(b.op("Where", both, "scores", low))


def attention(b: Builder) -> str:
    return str(b.op("Attention", "scores", "scores", "scores", "mask"))


def fused(b: Builder) -> str:
    return str(b.op("MultiHeadAttention", "scores", "scores", "scores", "", "", "mask", domain=CONTRIB, num_heads=1))


def untold(b: Builder) -> str:
    return str(b.op("Add", "scores", b.op("Log", "mask")))


@pytest.mark.parametrize(
    ("write", "kind", "form"),
    [
        (added, FLOAT, ADDED),
        (added, HALF, ADDED),
        (one_minus, INT64, LOOKS),
        (one_minus, BOOL, LOOKS),
        (minus_one, FLOAT, LOOKS),
        (times_low, FLOAT, HIDES),
        (where_looks, INT64, LOOKS),
        (where_looks, BOOL, LOOKS),
        (where_hides, BOOL, HIDES),
        (turned, BOOL, LOOKS),
        (equals_zero, INT64, LOOKS),
        (combined, BOOL, LOOKS),
        (attention, FLOAT, ADDED),
        (attention, BOOL, LOOKS),
        (fused, FLOAT, ADDED),
        (untold, FLOAT, None),
    ],
)
def test_form(tmp_path: Path, write: object, kind: int, form: MaskForm | None) -> None:
    b = Builder()
    assert callable(write)
    out = write(b)
    shape = ["batch", 1, "queries", "keys"]
    model = b.model({"scores": (FLOAT, shape), "mask": (kind, shape)}, {out: (FLOAT, shape)})
    onnx.save(model, tmp_path / "model.onnx")
    assert mask_forms(tmp_path / "model.onnx", ["mask"]) == ({} if form is None else {"mask": form})


MASK = np.array([[0, 1, 1, 1]])  # padding in front
CAUSAL = np.array([[[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]], bool)  # padding sees itself


class TestMade:
    @pytest.mark.parametrize("new", [1, 3, 4])
    @pytest.mark.parametrize("form", MaskForm)
    def test_causal(self, form: MaskForm, new: int) -> None:
        looks = CAUSAL[:, 4 - new :]
        found = pair_mask(MASK, new, ["b", "q", "k"], np.float32, form)
        low = np.finfo(np.float32).min
        expected = {ADDED: np.where(looks, 0, low), LOOKS: looks, HIDES: ~looks}[form]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected.astype(np.float32))

    def test_four_axes(self) -> None:
        found = pair_mask(MASK, 4, ["b", 2, "q", "k"], np.bool_, LOOKS)
        assert found.dtype == np.bool_
        np.testing.assert_array_equal(found, np.stack([CAUSAL, CAUSAL], axis=1))

    def test_as_low_as_half_goes(self) -> None:
        found = pair_mask(MASK, 4, ["b", 1, "q", "k"], np.float16, ADDED)
        assert found.dtype == np.float16
        assert found.min() == -65504

    def test_one_query_for_all(self) -> None:
        """A mask of padding alone, behind which the graph is causal by itself."""
        found = pair_mask(MASK, 4, ["b", 1, 1, "k"], np.int64, LOOKS)
        np.testing.assert_array_equal(found, MASK[:, None, None])
