"""Refusals of text, documents and their tokenizer, each made and put right as it says."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from spq_graph.runtime.text import documents
from spq_graph.runtime.text.documents import read_documents
from spq_graph.runtime.text.reading import load_sequences, windows
from spq_graph.runtime.text.sequences import Sequences, cut
from spq_graph.runtime.text.tokenizer import TextTokenizer
from tests.conftest import write_tokenizer
from tests.support.following import Told, written
from tests.support.words import text_of

follows = pytest.mark.follows


@pytest.fixture
def tokenizer(tmp_path: Path) -> TextTokenizer:
    """One whose folder has no chat template."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    write_tokenizer(folder)
    return TextTokenizer.load(folder)


def no_chat(_: list[object]) -> str:
    raise AssertionError("there are no messages here")


def text_in(path: Path) -> str | list[str]:
    return read_documents(path, no_chat)


# ------------------------------------------------------------------------------------------------- documents


@follows("runtime/text/documents.py:_content", "a damaged gzip file")
def test_damaged_gzip(refusal: Told, tmp_path: Path) -> None:
    packed, whole = tmp_path / "text.txt.gz", gzip.compress(text_of(100).encode())
    packed.write_bytes(whole[: len(whole) // 2])
    with refusal:
        text_in(packed)
    packed.write_bytes(whole)
    assert text_in(packed) == text_of(100)


@follows("runtime/text/documents.py:_content", "cannot be read")
def test_unreadable_text(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        text_in(tmp_path / "text.tx")
    written(tmp_path / "text.txt", text_of(10))
    assert text_in(tmp_path / "text.txt") == text_of(10)
    with mock.patch.object(Path, "open", side_effect=PermissionError(13, "Permission denied")), refusal:
        text_in(tmp_path / "text.txt")  # whatever right the tests themselves have
    assert refusal.error.what == "cannot be read: Permission denied"


@follows("runtime/text/documents.py:_content", "of text in a gzip file")
def test_a_gzip_of_a_gigabyte(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_MOST", 1000)
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"x" * 1001))
    with refusal:
        text_in(tmp_path / "text.gz")
    (tmp_path / "piece.gz").write_bytes(gzip.compress(b"x" * 1000))
    assert text_in(tmp_path / "piece.gz") == "x" * 1000


@follows("runtime/text/documents.py:read_text")
def test_what_is_no_text(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.parquet"
    path.write_bytes(b"ARROW1" + bytes(range(256)) + b"ARROW1")
    with refusal:
        text_in(path)
    assert text_in(written(tmp_path / "text.txt", "w0 w1")) == "w0 w1"
    takes_what_is_wanted(tmp_path / "text.jsonl")
    monkeypatch.chdir(tmp_path)
    exec(refusal.error.remedy.rpartition("ids: ")[2].removesuffix("."), {"numpy": np, "IDS": np.ones((2, 9), np.int64)})
    assert load_sequences(tmp_path / "IDS.npz", None, window=9, bos=False, vocab_size=None).tokens == 18


@follows("runtime/text/documents.py:_decoded")
def test_latin_text(refusal: Told, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes("café\n".encode("latin-1"))
    with refusal:
        text_in(tmp_path / "text.txt")
    if shutil.which("iconv") is None:
        pytest.skip("needs iconv")
    command = refusal.error.remedy.rpartition(" be ")[2].removesuffix(".").split()
    converted = subprocess.run([*command, tmp_path / "text.txt"], capture_output=True, check=True).stdout
    (tmp_path / "text.txt").write_bytes(converted)
    assert text_in(tmp_path / "text.txt") == "café\n"


ALL_FORMS = [["w0"], [{"text": "w0"}], [{"prompt": "w0"}], [{"prompt": "w", "completion": "0"}]]


def takes_what_is_wanted(path: Path) -> None:
    """Each of the forms that the remedy names, in a list and on lines."""
    for form in ALL_FORMS:
        assert text_in(written(path, form)) == ["w0"]
        assert text_in(written(path, "".join(f"{json.dumps(one)}\n" for one in form))) == ["w0"]
    written(path, [{"messages": [{"role": "user", "content": "w0"}]}])
    assert read_documents(path, lambda messages: str(messages[0]["content"])) == ["w0"]


@follows("runtime/text/documents.py:_items")
def test_broken_json(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        text_in(written(tmp_path / "text.json", '["w0"'))
    takes_what_is_wanted(tmp_path / "text.json")


@follows("runtime/text/documents.py:_document", "no text")
def test_documents_without_text(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        text_in(written(tmp_path / "text.json", [{"body": "w0"}]))
    takes_what_is_wanted(tmp_path / "text.json")


@follows("runtime/text/documents.py:_document", "half a surrogate pair")
def test_half_a_character(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        text_in(written(tmp_path / "text.json", '["w0 \\ud83d"]'))
    assert text_in(written(tmp_path / "text.json", '["w0 \\ud83d\\ude00"]')) == ["w0 \N{GRINNING FACE}"]
    assert text_in(written(tmp_path / "text.json", '["w0 "]')) == ["w0 "]


MESSAGES = [{"messages": [{"role": "user", "content": text_of(20)}]}]
ALTERNATE = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{{ messages[0].content }}"


def sequences(path: Path, tokenizer: TextTokenizer | None, **more: object) -> Sequences:
    given = {"window": 16, "bos": False, "vocab_size": None} | more
    return load_sequences(path, tokenizer, **given)  # type: ignore[arg-type]


@follows("runtime/text/chat.py:_rendered", "messages need a chat template")
def test_messages_without_a_template(refusal: Told, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = written(tmp_path / "chat.jsonl", MESSAGES)
    with refusal:
        sequences(path, tokenizer)
    chat = tmp_path / "chat model"
    shutil.copytree(tmp_path / "tokenizer", chat)
    written(chat / "chat_template.jinja", ALTERNATE)
    assert len(sequences(path, TextTokenizer.load(chat)))
    assert len(sequences(written(path, [{"text": text_of(20)}]), tokenizer))


@follows("runtime/text/chat.py:_template", "cannot be read")
def test_a_template_that_is_no_text(refusal: Told, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path, file = written(tmp_path / "chat.jsonl", MESSAGES), tmp_path / "tokenizer" / "chat_template.jinja"
    file.write_bytes(b"{{ caf\xe9 }}")
    with refusal:
        sequences(path, tokenizer)
    written(file, ALTERNATE)
    assert len(sequences(path, TextTokenizer.load(tmp_path / "tokenizer")))


@follows("runtime/text/chat.py:_rendered", "does not take these messages")
def test_messages_that_the_template_refuses(refusal: Told, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    written(tmp_path / "tokenizer" / "chat_template.jinja", ALTERNATE)
    wrong = [{"messages": [{"role": "system", "content": "w1"}, *MESSAGES[0]["messages"]]}]
    path = written(tmp_path / "chat.jsonl", wrong)
    with refusal:
        sequences(path, tokenizer)
    assert len(sequences(written(path, MESSAGES), tokenizer))
    assert len(sequences(written(path, [{"text": text_of(20)}]), tokenizer))


@follows("runtime/text/documents.py:_document", "no turn of a user")
def test_a_conversation_that_nobody_began(refusal: Told, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    written(tmp_path / "tokenizer" / "chat_template.jinja", ALTERNATE)
    wrong = {"messages": [{"role": "assistant", "content": text_of(20)}]}
    path = written(tmp_path / "chat.jsonl", [*MESSAGES, wrong])
    with refusal:
        sequences(path, tokenizer)
    assert "document 1" in refusal.error.what
    asked = {"messages": [{"role": "user", "content": "w1"}, *wrong["messages"]]}
    assert len(sequences(written(path, [*MESSAGES, asked]), tokenizer))
    assert len(sequences(written(path, [*MESSAGES, {"text": text_of(20)}]), tokenizer))


# ------------------------------------------------------------------------------------------------- rows of text


@follows("runtime/text/reading.py:windows")
def test_empty_text(refusal: Told, tokenizer: TextTokenizer) -> None:
    with refusal:
        windows(tokenizer, " \n", window=16, bos=False)
    assert len(windows(tokenizer, text_of(2000), window=16, bos=False)) > 100


@follows("runtime/text/reading.py:load_sequences", "text needs a tokenizer")
def test_text_alone(refusal: Told, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    path = written(tmp_path / "text.txt", text_of(40))
    with refusal:
        sequences(path, None)
    found = sequences(path, tokenizer)
    assert len(found) > 1
    import numpy as np

    np.savez(tmp_path / "ids.npz", input_ids=found.ids, attention_mask=found.mask)
    assert sequences(tmp_path / "ids.npz", None).digest == found.digest


@follows("runtime/text/sequences.py:Sequences.shard")
def test_no_such_shard(refusal: Told, tokenizer: TextTokenizer) -> None:
    whole = windows(tokenizer, text_of(200), window=16, bos=False)
    with refusal:
        whole.shard(3, 3)
    first, last = (int(word) for word in refusal.error.remedy.removesuffix(".").split() if word.isdigit())
    assert sum(len(whole.shard(index, 3)) for index in range(first, last + 1)) == len(whole)


@follows("runtime/text/sequences.py:cut", "has no room for text")
def test_a_window_without_room(refusal: Told, tokenizer: TextTokenizer) -> None:
    with refusal:
        windows(tokenizer, text_of(40), window=1, bos=False)
    least = int(refusal.error.remedy.split()[1])
    assert len(windows(tokenizer, text_of(40), window=least, bos=False)) == 40


@follows("runtime/text/sequences.py:cut", "Give more text, or")
def test_too_little_text(refusal: Told, tokenizer: TextTokenizer) -> None:
    with refusal:
        windows(tokenizer, text_of(5), window=16, bos=False)
    fitting = int(refusal.error.remedy.removesuffix(".").rpartition(" ")[2])
    assert len(windows(tokenizer, text_of(5), window=fitting, bos=False)) == 1
    assert len(windows(tokenizer, text_of(15), window=16, bos=False)) == 1


@follows("runtime/text/sequences.py:cut", "-> Give more text.")
def test_no_text_to_predict(refusal: Told) -> None:
    import numpy as np

    with refusal:
        cut([np.array([5])], [], window=16, origin="", min_windows=1)
    assert len(cut([np.arange(17)], [], window=16, origin="", min_windows=1)) == 2
