"""What a model said of a text is given again to the bit, without running it, as far as there is room for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("onnxruntime")

from spq_graph.runtime.measures.asked import Stream
from spq_graph.runtime.measures.said import Said
from spq_graph.runtime.sessions.segmented import Batch
from spq_graph.runtime.sessions.staged import Held


class Counting:
    """A model whose logits follow from the ids, and that counts the batches it runs."""

    def __init__(self) -> None:
        self.ran = 0

    def stream(self, batches: Sequence[Batch], columns: int | None = None) -> Iterator[npt.NDArray[np.float32]]:
        for ids, _ in batches:
            self.ran += 1
            yield np.random.default_rng(int(ids.sum())).normal(size=(*ids.shape, 7)).astype(np.float32)


def batches(count: int) -> list[Batch]:
    """Distinct ones, and the first of them once more at the end."""
    every = [np.full((2, 5), number, dtype=np.int64) for number in [*range(count), 0]]
    return [(ids, np.ones_like(ids)) for ids in every]


@pytest.mark.parametrize("room", [0, 300, 1 << 20])
def test_what_was_kept_is_not_run_again(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = Counting(), batches(4)
    monkeypatch.setattr("spq_graph.runtime.measures.said.Held", lambda folder: Held(folder, room))
    said = Said(None)
    usual = list(Counting().stream(asked))
    for _ in range(3):
        found = list(said.stream(cast(Stream, model), asked))
        assert all(np.array_equal(a, b) for a, b in zip(usual, found, strict=True))
    assert model.ran == {0: 15, 300: 5 + 3 + 3, 1 << 20: 5}[room]


def test_what_memory_has_no_room_for_is_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = Counting(), batches(3)
    monkeypatch.setattr("spq_graph.runtime.measures.said.Held", lambda folder: Held(folder, 0))
    said = Said(tmp_path)
    first, again = (list(said.stream(cast(Stream, model), asked)) for _ in range(2))
    assert model.ran == 4
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not list(tmp_path.iterdir())  # the file has no name
