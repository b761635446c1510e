from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spq_graph.runtime.text import named_sets
from spq_graph.runtime.text.named_sets import KNOWN, NAMES, NamedSet, cache, fetched, nearest
from spq_graph.terms.errors import DataError
from tests.support.hub_sets import write_set

TURNS = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spq-graph" / "sets"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wikitext-2", ("Salesforce/wikitext", "wikitext-2-raw-v1", None, None, None, None)),
        ("WikiText2:test", ("Salesforce/wikitext", "wikitext-2-raw-v1", "test", None, None, None)),
        ("ultrachat:2000", ("HuggingFaceH4/ultrachat_200k", None, "train_sft", 2000, None, None)),
        ("ultrachat:9:test_sft", ("HuggingFaceH4/ultrachat_200k", None, "test_sft", 9, None, None)),
        ("hf://datasets/a/b-1.x", ("a/b-1.x", None, None, None, None, None)),
        ("hf:/datasets/a/b@main/en:dev:5#body text", ("a/b", "en", "dev", 5, "body text", "main")),
    ],
)
def test_names(name: str, expected: tuple[object, ...]) -> None:
    found = NamedSet.of(name)
    assert found is not None
    assert (found.repository, found.config, found.split, found.rows, found.column, found.revision) == expected


@pytest.mark.parametrize(
    "name", ["text.txt", "wikitext-2.txt", "wikitext-3", "hf://org/name", "c4/x", "ultrachat:", ""]
)
def test_what_is_no_name(name: str) -> None:
    assert NamedSet.of(name) is None


def test_every_known_name_is_one_and_the_nearest_is_found() -> None:
    found = [NamedSet.of(name) for name in NAMES]
    assert [one.repository for one in found if one] == [one.repository for one in KNOWN.values()]
    assert [nearest(name) for name in ("wikitxt-2:test", "ultra-chat", "prose.txt")] == [
        "wikitext-2",
        "ultrachat",
        None,
    ]


def test_another_piece_is_another_file() -> None:
    names = ["ultrachat", "ultrachat:5", "ultrachat:test_sft", "hf://datasets/HuggingFaceH4/ultrachat_200k:train_sft#m"]
    files = {str(named.file) for name in names if (named := NamedSet.of(name))}
    assert len(files) == len(names)
    assert all(Path(file).parent == cache() for file in files)


def rows_of(name: str) -> list[Any]:
    named = NamedSet.of(name)
    assert named is not None
    return [json.loads(line) for line in fetched(named, name).read_text(encoding="utf-8").splitlines()]


class TestFromTheCacheOfDatasets:
    @pytest.fixture(autouse=True)
    def made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("datasets", reason="data sets by name want `datasets`: pip install 'spq-graph[data]'")
        monkeypatch.setattr(named_sets, "why_unreachable", lambda: "no network")
        chat = [{"prompt": f"w{n}", "prompt_id": "x", "messages": TURNS} for n in range(4)]
        write_set(monkeypatch, tmp_path, "HuggingFaceH4/ultrachat_200k", {"train_sft": chat, "test_sft": chat[:1]})
        lines = [{"text": text} for text in (" = A = \n", "", " b\u2028c \n")]
        write_set(
            monkeypatch, tmp_path, "Salesforce/wikitext", {"train": lines, "test": lines[2:]}, "wikitext-2-raw-v1"
        )
        odd = [{"body": "w1", "n": 1, "said": TURNS}]
        write_set(monkeypatch, tmp_path, "org/odd", {"train": odd})

    def test_the_first_rows_in_the_columns_that_are_read(self) -> None:
        assert rows_of("ultrachat:2") == [{"prompt": f"w{n}", "messages": TURNS} for n in range(2)]
        assert len(rows_of("ultrachat")) == 4
        assert len(rows_of("ultrachat:test_sft")) == 1

    def test_lines_of_one_text_are_joined(self) -> None:
        named = NamedSet.of("wikitext-2")
        assert named is not None
        assert fetched(named, "wikitext-2").read_text(encoding="utf-8") == " = A = \n\n\n\n\n b\u2028c \n"
        assert fetched(named.for_judging(), "wikitext-2").read_text(encoding="utf-8") == " b\u2028c \n"

    def test_a_column_that_is_named(self) -> None:
        assert rows_of("hf://datasets/org/odd#body") == [{"text": "w1"}]
        assert rows_of("hf://datasets/org/odd#said") == [{"messages": TURNS}]

    def test_what_was_fetched_is_kept(self, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rows_of("ultrachat:2")
        monkeypatch.setattr(named_sets, "find_spec", lambda name: None)
        assert len(rows_of("ultrachat:2")) == 2
        assert [file.name for file in kept.iterdir()] == ["HuggingFaceH4--ultrachat_200k-train_sft-2.jsonl"]

    def test_no_more_than_is_held(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(named_sets, "_MOST", 100)
        assert len(rows_of("ultrachat")) < 4

    def test_what_is_not_there_is_streamed_from_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        load, streamed = datasets.load_dataset, []

        def from_hub(*args: object, streaming: bool = False, **named: object) -> object:
            if not streaming:
                return load(*args, **named)
            streamed.append(named)
            return iter([{"text": "w1"}, {"text": "w2"}])

        monkeypatch.setattr(named_sets, "why_unreachable", lambda: None)
        monkeypatch.setattr(datasets, "load_dataset", from_hub)
        assert rows_of("c4:1") == [{"text": "w1"}]
        assert streamed == [{"path": "allenai/c4", "name": "en", "split": "train"}]

    def test_half_a_file_is_none(self, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> object:
            yield {"text": "w1"}
            raise ConnectionResetError("gone")

        monkeypatch.setattr(named_sets, "_rows", broken)
        with pytest.raises(DataError, match="gone"):
            rows_of("c4")
        assert not kept.exists()
