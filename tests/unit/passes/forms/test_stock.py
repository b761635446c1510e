"""Graphs that are made of one source share what was made of its weights: each once, and the same to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.passes.adapt.prepared import prepared
from spq_graph.passes.apply import apply_plan
from spq_graph.passes.base.stock import Stock
from spq_graph.passes.forms.encode import Encoded
from spq_graph.runtime.sessions.staged import Held
from spq_graph.terms.precision import Precision
from spq_graph.terms.targets import PROFILES
from tests.support.decoder_graphs import Decoder, decoder, token_feeds
from tests.support.inserting import plan_for

ENCODED = [p for p in Precision if PROFILES["cpu"].allows(p) and p is not Precision.FP32]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(decoder(Decoder(layers=1)), path)
    return path


def codes_of(model: ir.Model) -> dict[str, npt.NDArray[Any]]:
    """By name, what its weights are stored as."""
    held = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {name: tensor.numpy() for name, tensor in held.items() if isinstance(tensor, Encoded)}


@pytest.mark.parametrize("precision", ENCODED)
def test_the_same_to_the_bit_and_made_once(source: Path, tmp_path: Path, precision: Precision) -> None:
    held, kept = Held(tmp_path, memory=0), list[int]()

    def keep(made: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
        kept.append(made.nbytes)
        return held.keep(made)

    whole, plan, stock = prepared(source), plan_for(source, token_feeds(), precision), Stock(keep)
    alone = codes_of(apply_plan(whole, plan, measured=True))
    first, again = (codes_of(apply_plan(whole, plan, measured=True, stock=stock)) for _ in range(2))
    assert alone.keys() == first.keys() == again.keys() != set()
    assert all(first[name].tobytes() == codes.tobytes() for name, codes in alone.items())
    assert all(first[name].dtype == codes.dtype for name, codes in alone.items())
    assert all(np.shares_memory(again[name], codes) for name, codes in first.items())
    assert len(kept) == len(alone)


def test_another_form_of_a_weight_is_another(source: Path, tmp_path: Path) -> None:
    whole, stock = prepared(source), Stock(Held(tmp_path, memory=0).keep)
    for precision in (Precision.INT8, Precision.W8A8_BLOCK, Precision.INT8):
        plan = plan_for(source, token_feeds(), precision)
        alone, shared = (codes_of(apply_plan(whole, plan, measured=True, stock=s)) for s in (None, stock))
        assert {n: c.tobytes() for n, c in alone.items()} == {n: c.tobytes() for n, c in shared.items()}


def test_without_room_it_is_made_again(source: Path) -> None:
    whole, plan = prepared(source), plan_for(source, token_feeds(), Precision.INT8)
    alone = codes_of(apply_plan(whole, plan, measured=True))
    for stock in (Stock(), Stock(Held(None, memory=0).keep)):
        found = codes_of(apply_plan(whole, plan, measured=True, stock=stock))
        assert {n: c.tobytes() for n, c in found.items()} == {n: c.tobytes() for n, c in alone.items()}
