from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from spq_graph.runtime.text.reading import load_sequences, windows
from spq_graph.runtime.text.sequences import Sequences
from spq_graph.runtime.text.tokenizer import TextTokenizer
from spq_graph.terms.errors import DataError, UsageError
from tests.support.words import text_of, words


@pytest.fixture
def plain() -> TextTokenizer:
    return TextTokenizer(words())


@pytest.fixture
def prepending() -> TextTokenizer:
    return TextTokenizer(words("<s> $A </s>"))


class TestSequences:
    @pytest.fixture
    def rows(self, prepending: TextTokenizer) -> Sequences:
        return windows(prepending, [text_of(n) for n in (3, 9, 5, 2)], window=8, bos=False, origin="made up")

    def test_batches_are_all_rows_in_order(self, rows: Sequences) -> None:
        ids, masks = zip(*rows.batches(2), strict=True)
        assert [len(part) for part in ids] == [2, 2, 1]
        assert (np.concatenate(ids) == rows.ids).all()
        assert (np.concatenate(masks) == rows.mask).all()

    def test_take_keeps_whole_rows_and_at_least_one(self, rows: Sequences) -> None:
        assert [rows.take(tokens).tokens for tokens in (1, 4, 11, 12, 1000)] == [4, 4, 4, 12, rows.tokens]
        assert rows.take(4).ids.shape == (1, 4)

    def test_shards_are_disjoint_and_complete(self, rows: Sequences) -> None:
        shards = [rows.shard(index, 3) for index in range(3)]
        assert sum(shard.tokens for shard in shards) == rows.tokens
        assert [shard.prefix for shard in shards] == [1, 1, 1]
        assert rows.shard(0, 1).digest == rows.digest
        assert rows.shard(8, 9).tokens == 0
        with pytest.raises(UsageError, match="no shard 3 of 3"):
            rows.shard(3, 3)

    def test_digest_tells_content_and_shape_apart(self) -> None:
        ids = np.arange(6, dtype=np.int64)
        flat, tall = (Sequences(ids.reshape(shape), np.ones(shape, dtype=np.int64)) for shape in ((1, 6), (2, 3)))
        assert flat.digest != tall.digest
        assert flat.digest == Sequences(ids[None], np.ones((1, 6), dtype=np.int64), origin="elsewhere").digest


class TestFiles:
    def load(self, path: Path, tokenizer: TextTokenizer | None = None, **options: object) -> Sequences:
        settings = {"window": 8, "bos": False, "vocab_size": 32, **options}
        return load_sequences(path, tokenizer, **settings)  # type: ignore[arg-type]

    def test_text_and_documents(self, tmp_path: Path, prepending: TextTokenizer) -> None:
        text, documents = tmp_path / "a.txt", tmp_path / "a.json"
        text.write_bytes(b"\xef\xbb\xbf" + text_of(20).encode())
        documents.write_text(json.dumps([text_of(20)]), encoding="utf-8")
        read = self.load(text, prepending)
        assert read.digest == self.load(documents, prepending).digest
        assert read.origin == str(text)
        with pytest.raises(UsageError, match="--tokenizer DIR"):
            self.load(text)

    def test_a_separator_inside_of_a_string_ends_no_line(self, tmp_path: Path, prepending: TextTokenizer) -> None:
        texts = [f"{text_of(9)}\u2028{text_of(9)}", text_of(9)]
        lines, listed = tmp_path / "a.jsonl", tmp_path / "a.json"
        lines.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")
        listed.write_text(json.dumps(texts), encoding="utf-8")
        assert self.load(lines, prepending).digest == self.load(listed, prepending).digest

    def test_a_broken_line_is_named(self, tmp_path: Path, prepending: TextTokenizer) -> None:
        (tmp_path / "a.jsonl").write_text(3 * '"w1 w2"\n' + '{"text": "w1', encoding="utf-8")
        with pytest.raises(DataError, match="not valid JSON in line 4: Unterminated string"):
            self.load(tmp_path / "a.jsonl", prepending)

    @pytest.mark.parametrize(
        "begin", [b"ARROW1", b"PK\x03\x04", b"\x28\xb5\x2f\xfd", b"BZh91AY&SY", b"\x93NUMPY", b"%PDF-"]
    )
    def test_other_forms_are_told_by_their_content(
        self, tmp_path: Path, prepending: TextTokenizer, begin: bytes
    ) -> None:
        (tmp_path / "a.txt").write_bytes(begin + bytes(range(256)))
        with pytest.raises(DataError, match=", not text"):
            self.load(tmp_path / "a.txt", prepending)

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_every_unicode_encoding(
        self, tmp_path: Path, prepending: TextTokenizer, encoding: str, packed: bool
    ) -> None:
        content = text_of(20).encode(encoding)
        (tmp_path / "a.txt").write_bytes(gzip.compress(content) if packed else content)
        (tmp_path / "plain.txt").write_text(text_of(20), encoding="utf-8")
        read, expected = (self.load(tmp_path / name, prepending) for name in ("a.txt", "plain.txt"))
        assert read.digest == expected.digest

    @pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.txt", "a.JSONL", "a.jsonl.gz"])
    @pytest.mark.parametrize(
        "items",
        [
            [text_of(12), text_of(9)],
            [{"text": text_of(12), "id": 1}, {"text": text_of(9)}],
            [{"prompt": text_of(12)[:6], "completion": text_of(12)[6:]}, {"prompt": text_of(9)}],
        ],
    )
    @pytest.mark.parametrize("lines", [False, True])
    def test_documents_in_json_by_any_name(
        self, tmp_path: Path, prepending: TextTokenizer, name: str, items: list[object], lines: bool
    ) -> None:
        if lines and name == "a.txt" and isinstance(items[0], str):
            pytest.skip("lines in quotation marks may be prose")
        content = "\n".join(map(json.dumps, items)) if lines else json.dumps(items)
        (tmp_path / name).write_text(content, encoding="utf-8")
        (tmp_path / "list.json").write_text(json.dumps([text_of(12), text_of(9)]), encoding="utf-8")
        assert self.load(tmp_path / name, prepending).digest == self.load(tmp_path / "list.json", prepending).digest

    @pytest.mark.parametrize("text", ["[1] w3 w4 w5 w6 w7 w8", "[] w3 w4", "[1, 2]", "[w3] w4 w5"])
    def test_prose_that_begins_with_a_bracket(self, tmp_path: Path, prepending: TextTokenizer, text: str) -> None:
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        read = self.load(tmp_path / "a.txt", prepending, min_windows=0)
        assert read.tokens == len(prepending.encode(text, special=True))

    def test_messages_by_the_chat_template(self, tmp_path: Path) -> None:
        template = (
            "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
        )
        words("<s> $A").save(str(tmp_path / "tokenizer.json"))
        config = {"bos_token": "<s>", "chat_template": [{"name": "default", "template": template}]}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        tokenizer = TextTokenizer.load(tmp_path)
        parts = text_of(20).split()
        messages = [
            {"role": "user", "content": " ".join(parts[:7])},
            {"role": "assistant", "content": " ".join(parts[7:])},
        ]
        (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}))
        (tmp_path / "plain.txt").write_text(text_of(20))
        read, expected = (self.load(tmp_path / name, tokenizer) for name in ("chat.jsonl", "plain.txt"))
        assert read.digest == expected.digest
        (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('users come first') }}")
        with pytest.raises(DataError, match="users come first"):
            self.load(tmp_path / "chat.jsonl", tokenizer)

    @pytest.mark.parametrize(("post_processing", "bos"), [(None, False), (None, True), ("<s> $A", False)])
    def test_messages_begin_with_bos_once_whoever_puts_it_there(
        self, tmp_path: Path, post_processing: str | None, bos: bool
    ) -> None:
        words(post_processing).save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
        (tmp_path / "chat_template.jinja").write_text("{{ bos_token }} {{ messages[0]['content'] }}")
        (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": text_of(9)}]}))
        tokenizer = TextTokenizer.load(tmp_path)
        read = self.load(tmp_path / "chat.jsonl", tokenizer, window=16, bos=bos, min_windows=0)
        assert read.ids.tolist() == [[tokenizer.bos_id, *tokenizer.encode(text_of(9))]]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.txt", b"caf\xe9 au lait", "byte 0xe9 at offset 3"),
            ("a.txt", b"", "the text is empty"),
            ("a.json", b"[", "not valid JSON"),
            ("a.json", b'{"body": "x", "id": 1}', "document 0 is an object with body, id: no text"),
            ("a.json", b"[1]", "document 0 is 1: no text"),
            ("a.jsonl", b'{"text": "x"}\n{"text": ', "not valid JSON"),
            ("a.txt", b'{"text": "x"}\n{"text": ', "not valid JSON"),
            ("a.jsonl", b'{"messages": [{"role": "user", "content": "x"}]}', "need a chat template"),
            ("a.txt.gz", b"\x1f\x8b\x08 cut", "damaged gzip"),
            ("a.txt", b"\xff\xfea", "not UTF-16-LE"),
            ("a.json", b"[]", "the text is empty"),
            ("a.json", b'["\\ud800"]', "document 0 holds half"),
            ("a.npz", b"no archive", "not a readable"),
        ],
    )
    def test_bad_files(
        self, tmp_path: Path, prepending: TextTokenizer, name: str, content: bytes, message: str
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as error:
            self.load(tmp_path / name, prepending)
        assert error.value.where in (str(tmp_path / name), "")

    def test_absent_file_and_folder(self, tmp_path: Path, prepending: TextTokenizer) -> None:
        for path in (tmp_path, tmp_path / "absent.txt", tmp_path / "absent.npz"):
            with pytest.raises(DataError):
                self.load(path, prepending)

    def test_text_of_another_vocabulary(self, tmp_path: Path, prepending: TextTokenizer) -> None:
        (tmp_path / "a.txt").write_text(text_of(20), encoding="utf-8")
        with pytest.raises(DataError, match=r"id 10 in row 1 is outside the vocabulary of 10"):
            self.load(tmp_path / "a.txt", prepending, vocab_size=10)

    def save(self, path: Path, **arrays: object) -> Path:
        np.savez(path / "a.npz", **arrays)  # type: ignore[arg-type]
        return path / "a.npz"

    @pytest.mark.parametrize("name", ["input_ids", "tokens"])
    def test_ids_are_taken_as_they_are(self, tmp_path: Path, prepending: TextTokenizer, name: str) -> None:
        ids = np.array([[1, 5, 6], [1, 7, 8]], dtype=np.uint16)
        path = self.save(tmp_path, **{name: ids})
        bare, known = self.load(path), self.load(path, prepending, bos=True)
        assert bare.ids.tolist() == known.ids.tolist() == ids.tolist()
        assert bare.ids.dtype == bare.mask.dtype == np.int64
        assert (bare.prefix, known.prefix) == (0, 1)
        assert (bare.predicted == known.predicted).all()

    def test_padded_ids_are_cleared(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, input_ids=np.array([[4, 5, -100], [6, 7, 8]]), attention_mask=[[1, 1, 0], [1, 1, 1]])
        assert self.load(path).ids.tolist() == [[4, 5, 0], [6, 7, 8]]

    def test_long_rows_are_cut(self, tmp_path: Path, prepending: TextTokenizer) -> None:
        stream = np.array([1, *range(3, 20)])
        cut = self.load(self.save(tmp_path, input_ids=stream), prepending)
        assert cut.prefix == 1
        assert cut.ids[:, 1:][cut.predicted].tolist() == list(range(3, 20))
        assert cut.ids[:, 0].tolist() == [1, 1, 1]
        bare = self.load(self.save(tmp_path, input_ids=stream))
        assert bare.ids[:, 1:][bare.predicted].tolist() == list(range(3, 20))

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"input_ids": np.array([[3, 4], [5, 40]])}, "token id 40 in row 1 is outside the vocabulary of 32"),
            ({"input_ids": np.array([[3, -1]])}, "token id -1 in row 0"),
            ({"input_ids": np.array([[3.0, 4.0]])}, "float64"),
            ({"input_ids": np.zeros((1, 1, 2), dtype=int)}, r"\[1, 1, 2\]"),
            ({"input_ids": np.zeros((0, 8), dtype=int)}, "no row holds two"),
            ({"input_ids": np.array([3])}, "no row holds two"),
            ({"a": np.array([3, 4]), "b": np.array([3, 4])}, "no input_ids among"),
            ({"input_ids": np.array([3, 4]), "attention_mask": np.array([1])}, "attention_mask must be"),
            ({"input_ids": np.array([3, 4]), "attention_mask": np.array([1, 2])}, "attention_mask must be"),
            ({"input_ids": np.array([{}], dtype=object)}, "not a readable"),
        ],
    )
    def test_bad_ids(self, tmp_path: Path, arrays: dict[str, object], message: str) -> None:
        with pytest.raises(DataError, match=message):
            self.load(self.save(tmp_path, **arrays))

    def test_ids_have_to_be_enough(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, input_ids=np.array([[3, 4], [5, 6]]))
        assert len(self.load(path, min_windows=2)) == 2
        with pytest.raises(DataError, match="2 rows where 3"):
            self.load(path, min_windows=3)

    def test_bos_is_not_forced_into_ids(self, tmp_path: Path, prepending: TextTokenizer) -> None:
        path = self.save(tmp_path, input_ids=np.array([[3, 4], [5, 6]]))
        for tokenizer in (None, prepending):
            with pytest.raises(UsageError, match="--bos does nothing"):
                self.load(path, tokenizer, bos=True)
