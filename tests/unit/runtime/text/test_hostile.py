"""Archives and tokenizers that are not what they say: refused in words, in little memory."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from spq_graph.runtime.text import reading
from spq_graph.runtime.text.tokenizer import TextTokenizer, read_json
from spq_graph.terms.errors import DataError, SourceError
from tests.conftest import write_tokenizer


def load(path: Path) -> object:
    return reading.load_sequences(path, None, window=16, bos=False, vocab_size=64)


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00v\x00" + header.encode().ljust(117) + b"\n"


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776, 16), }",
        "{'descr': '<i8', 'fortran_order': False, 'shape': " + "(" * 40,
        "{'descr': 'nonsense', 'fortran_order': False, 'shape': (2, 2), }",
        "",
    ],
)
def test_headers_that_promise_otherwise(tmp_path: Path, header: str) -> None:
    with zipfile.ZipFile(tmp_path / "ids.npz", "w") as archive:
        archive.writestr("input_ids.npy", npy(header))
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        load(tmp_path / "ids.npz")


@pytest.mark.parametrize(("at", "central", "value"), [(6, 8, 1), (8, 10, 99)])
def test_encrypted_members_and_unknown_compressions(tmp_path: Path, at: int, central: int, value: int) -> None:
    into = io.BytesIO()
    np.savez(into, input_ids=np.ones((2, 8), int))
    data = bytearray(into.getvalue())
    data[at] = data[data.find(b"PK\x01\x02") + central] = value
    (tmp_path / "ids.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        load(tmp_path / "ids.npz")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "ids.npz", input_ids=np.zeros((1 << 12, 1 << 13), np.int64))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="unpacks to 256 MiB, more than 128"):
            load(tmp_path / "ids.npz")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_an_array_that_nobody_asks_for_is_not_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "ids.npz", input_ids=np.ones((2, 8), int), other=np.zeros(1 << 23))
    tracemalloc.start()
    try:
        load(tmp_path / "ids.npz")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


class Panic(BaseException):
    """As pyo3 raises one."""


class Panics:
    """A tokenizer whose own code is at fault."""

    def __getattr__(self, name: str) -> object:
        raise Panic(name)


def test_a_tokenizer_that_panics_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tokenizer(tmp_path)
    sound = TextTokenizer.load(tmp_path)
    monkeypatch.setattr(sound, "_tokenizer", Panics())
    for use in (lambda: sound.encode("w1"), lambda: sound.decode([1]), lambda: sound.token_text(3)):
        with pytest.raises(SourceError, match="not a tokenizer that can be used"):
            use()

    def panic(*_: object) -> None:
        raise Panic("unk_id")

    monkeypatch.setattr("spq_graph.runtime.text.tokenizer.Tokenizer.from_file", panic, raising=False)
    with pytest.raises(SourceError, match="not a tokenizer that can be used: unk_id"):
        TextTokenizer.load(tmp_path)


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a":' + "9" * 5000 + "}", "\ufeff{", "[1]"])
def test_json_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(SourceError):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("number", [-1, 1 << 62, 10**400])
def test_ids_that_are_none_are_not_taken(tmp_path: Path, number: int) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text(f'{{"eos_token_id": {number}}}')
    assert TextTokenizer.load(tmp_path).eos_id is None
