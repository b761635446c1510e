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
from spq_graph.passes.base.stock import Keep, Stock
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

    whole, plan, stock = prepared(source), plan_for(source, token_feeds(), precision), Stock(lambda: keep)
    alone = codes_of(apply_plan(whole, plan, measured=True))
    first, again = (codes_of(apply_plan(whole, plan, measured=True, stock=stock)) for _ in range(2))
    assert alone.keys() == first.keys() == again.keys() != set()
    assert all(first[name].tobytes() == codes.tobytes() for name, codes in alone.items())
    assert all(first[name].dtype == codes.dtype for name, codes in alone.items())
    assert all(np.shares_memory(again[name], codes) for name, codes in first.items())
    assert len(kept) == len(alone)


def test_another_form_of_a_weight_is_another(source: Path, tmp_path: Path) -> None:
    whole, stock = prepared(source), Stock(lambda: Held(tmp_path, memory=0).keep)
    for precision in (Precision.INT8, Precision.W8A8_BLOCK, Precision.INT8):
        plan = plan_for(source, token_feeds(), precision)
        alone, shared = (codes_of(apply_plan(whole, plan, measured=True, stock=s)) for s in (None, stock))
        assert {n: c.tobytes() for n, c in alone.items()} == {n: c.tobytes() for n, c in shared.items()}


def test_without_room_it_is_made_again(source: Path) -> None:
    whole, plan = prepared(source), plan_for(source, token_feeds(), Precision.INT8)
    alone = codes_of(apply_plan(whole, plan, measured=True))
    for stock in (Stock(), Stock(lambda: Held(None, memory=0).keep)):
        found = codes_of(apply_plan(whole, plan, measured=True, stock=stock))
        assert {n: c.tobytes() for n, c in found.items()} == {n: c.tobytes() for n, c in alone.items()}


class Shelf:
    """Keeps so many arrays, and no more."""

    def __init__(self, room: int) -> None:
        self.room = room

    def keep(self, made: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8] | None:
        self.room -= 1
        return made if self.room >= 0 else None


def test_where_a_place_is_full_another_takes_what_comes_next() -> None:
    made, places = list[int](), list[Shelf]()

    def place() -> Keep:
        places.append(Shelf(2))
        return places[-1].keep

    def codes(number: int) -> int:
        def make() -> npt.NDArray[np.int8]:
            made.append(number)
            return np.array([number], dtype=np.int8)

        return int(stock.codes(number, make)[0])

    stock = Stock(place)
    assert [codes(n) for n in (1, 2, 1, 3, 3, 4, 1, 1)] == [1, 2, 1, 3, 3, 4, 1, 1]
    assert made == [1, 2, 3, 4, 1]  # the third finds the first place full, and so does the first, come back, the second
    assert len(places) == 3


def test_where_no_place_has_room_each_is_made_as_often_as_it_is_read() -> None:
    made = list[int]()
    stock = Stock(lambda: Shelf(0).keep)
    for _ in range(3):
        stock.codes(1, lambda: made.append(1) or np.zeros(1, dtype=np.int8))  # type: ignore[func-returns-value]
    assert len(made) == 3
