"""Refusals of tokenizers and of what lies beside them, each made and put right as it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from spq_graph.runtime.text.tokenizer import TextTokenizer, read_json
from tests.conftest import write_tokenizer
from tests.support.following import Told, written
from tests.support.words import words

follows = pytest.mark.follows


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    """One whose folder has no chat template."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_tokenizer(folder)
    return TextTokenizer.load(folder)


@follows("runtime/text/tokenizer.py:_sound")
def test_broken_tokenizer(refusal: Told, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer" / "tokenizer.json"
    whole = file.read_bytes()
    file.write_text("{}", encoding="utf-8")
    with refusal:
        TextTokenizer.load(file.parent)
    file.write_bytes(whole)
    assert TextTokenizer.load(file.parent).vocab_size == tokenizer.vocab_size


@follows("runtime/text/tokenizer.py:TextTokenizer.prepended")
def test_bos_where_there_is_none(refusal: Told) -> None:
    without = TextTokenizer(words())
    with refusal:
        without.prepended(True)
    assert without.prepended(False) == []


@follows("runtime/text/tokenizer.py:_missing", "there is no such folder")
def test_no_tokenizer_folder(refusal: Told, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with refusal:
        TextTokenizer.load(tmp_path / "absent")
    assert TextTokenizer.load(tmp_path / "tokenizer").folder == tokenizer.folder


@follows("runtime/text/tokenizer.py:_missing", "no tokenizer.json, only")
def test_slow_tokenizer(refusal: Told, tmp_path: Path) -> None:
    slow = tmp_path / "slow"
    slow.mkdir()
    written(slow / "vocab.json", {"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3})
    written(slow / "merges.txt", "#version: 0.2\na b\n")
    written(slow / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    with refusal:
        TextTokenizer.load(slow)
    transformers = pytest.importorskip("transformers")
    code = next(part for part in refusal.error.remedy.split(", ") if "from_pretrained" in part)
    names = {"AutoTokenizer": transformers.AutoTokenizer, "FOLDER": slow, "NEW": tmp_path / "new"}
    exec(compile(code, "remedy", "exec"), names)
    assert TextTokenizer.load(tmp_path / "new").encode("ab") == [3]


@follows("runtime/text/tokenizer.py:_missing", "in this folder")
def test_folder_without_tokenizer(refusal: Told, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with refusal:
        TextTokenizer.load(tmp_path)
    assert TextTokenizer.load(tmp_path / "tokenizer").vocab_size == tokenizer.vocab_size


@follows("runtime/text/tokenizer.py:read_json", "not valid JSON")
def test_broken_json_beside(refusal: Told, tmp_path: Path) -> None:
    path = written(tmp_path / "config.json", "{")
    with refusal:
        read_json(path)
    assert read_json(written(path, {"a": 1})) == {"a": 1}


@follows("runtime/text/tokenizer.py:read_json", "not a JSON object")
def test_a_list_beside(refusal: Told, tmp_path: Path) -> None:
    path = written(tmp_path / "config.json", [])
    with refusal:
        read_json(path)
    assert read_json(written(path, {"a": 1})) == {"a": 1}
