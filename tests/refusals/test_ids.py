"""Refusals of arrays of token ids, each made and put right as it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spq_graph.runtime.text.reading import load_sequences
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.runtime.text.tokenizer import TextTokenizer
from tests.support.decoders import BOS, VOCABULARY, random_ids
from tests.support.following import Told
from tests.support.words import words

follows = pytest.mark.follows


def ids_in(path: Path, tokenizer: TextTokenizer | None = None, **more: object) -> Sequences:
    given = {"window": 16, "bos": False, "vocab_size": VOCABULARY} | more
    return load_sequences(path, tokenizer, **given)  # type: ignore[arg-type]


@follows("runtime/text/reading.py:load_sequences", "rows where")
def test_few_rows(refusal: Told, tmp_path: Path) -> None:
    path = tmp_path / "ids.npz"
    np.savez(path, input_ids=random_ids(3, 16))
    with refusal:
        ids_in(path, min_windows=4)
    np.savez(path, input_ids=random_ids(4, 16))
    assert len(ids_in(path, min_windows=4)) == 4


@follows("runtime/text/reading.py:_from_ids")
def test_bos_for_ids(refusal: Told, tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "ids.npz", TextTokenizer(words(), bos_id=BOS)
    np.savez(path, input_ids=random_ids(4, 16, bos=False) % 20 + 5)
    with refusal:
        ids_in(path, tokenizer, bos=True)
    assert len(ids_in(path, tokenizer)) == 4
    np.savez(path, input_ids=random_ids(4, 16))
    assert ids_in(path, tokenizer, bos=True).prefix == 1


@follows("runtime/text/reading.py:_arrays_in", "not a readable .npz")
def test_no_archive(refusal: Told, tmp_path: Path) -> None:
    path = tmp_path / "ids.npz"
    path.write_bytes(b"PK\x03\x04 no")
    with refusal:
        ids_in(path)
    exec(refusal.error.remedy.partition(" makes")[0], {"numpy": np, "FILE": path, "IDS": random_ids(4, 16)})
    assert len(ids_in(path)) == 4


@follows("runtime/text/reading.py:_arrays_in", "no input_ids among")
def test_arrays_of_other_names(refusal: Told, tmp_path: Path) -> None:
    path = tmp_path / "ids.npz"
    np.savez(path, one=random_ids(4, 16), other=random_ids(4, 16))
    with refusal:
        ids_in(path)
    np.savez(path, input_ids=random_ids(4, 16), other=random_ids(4, 16))
    assert len(ids_in(path)) == 4


@follows("runtime/text/reading.py:_arrays_in", "unpacks to")
def test_an_archive_of_gigabytes(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spq_graph.runtime.text.reading._MOST_BYTES", 1000)
    path = tmp_path / "ids.npz"
    np.savez(path, input_ids=random_ids(40, 16))
    with refusal:
        ids_in(path)
    np.savez(path, input_ids=random_ids(4, 16))
    assert len(ids_in(path)) == 4


@follows("runtime/text/reading.py:_read_npz", "Ids are integers")
def test_ids_that_are_none(refusal: Told, tmp_path: Path) -> None:
    path = tmp_path / "ids.npz"
    np.savez(path, input_ids=random_ids(4, 16).astype(np.float32))
    with refusal:
        ids_in(path)
    np.savez(path, input_ids=random_ids(4, 16))
    assert len(ids_in(path)) == 4


@follows("runtime/text/reading.py:_read_npz", "attention_mask must be")
def test_a_mask_of_another_shape(refusal: Told, tmp_path: Path) -> None:
    path, ids = tmp_path / "ids.npz", random_ids(4, 16)
    np.savez(path, input_ids=ids, attention_mask=np.ones((4, 15), np.int64))
    with refusal:
        ids_in(path)
    np.savez(path, input_ids=ids, attention_mask=np.ones_like(ids))
    assert len(ids_in(path)) == 4
    np.savez(path, input_ids=ids)
    assert len(ids_in(path)) == 4


@follows("runtime/text/reading.py:_read_npz", "no row holds two tokens")
def test_rows_of_one_token(refusal: Told, tmp_path: Path) -> None:
    path = tmp_path / "ids.npz"
    np.savez(path, input_ids=random_ids(4, 1))
    with refusal:
        ids_in(path)
    np.savez(path, input_ids=random_ids(1, 300))
    assert ids_in(path).tokens >= 300


@follows("runtime/text/reading.py:_check_vocabulary")
def test_ids_of_another_vocabulary(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("w28 w28 w28 w28 w28", encoding="utf-8")
    with refusal:
        ids_in(tmp_path / "text.txt", TextTokenizer(words()), window=4, vocab_size=20)
    assert ids_in(tmp_path / "text.txt", TextTokenizer(words()), window=4, vocab_size=32).tokens == 6
