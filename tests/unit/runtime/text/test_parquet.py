"""Rows of Parquet are the documents that the same rows are as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="Parquet wants pyarrow")

import pyarrow as arrow
import pyarrow.parquet as files

from spq_graph.runtime.text.documents import read_documents
from spq_graph.terms.errors import DataError

TURNS = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]


def chat(messages: list[Any]) -> str:
    return " ".join(f"{one['role']}: {one['content']}" for one in messages)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    files.write_table(arrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": f"w{n} w1", "id": n} for n in range(5)],
        [{"prompt": "w1 ", "completion": "w2"}, {"prompt": "w3", "completion": "w4"}],
        [{"prompt": "w1 ", "response": "w2", "score": 0.5}],
        [{"messages": TURNS, "prompt_id": "x"}, {"messages": TURNS[:1], "prompt_id": "y"}],
        [{"text": "", "messages": TURNS}],
    ],
    ids=["text", "completion", "response", "messages", "text first"],
)
@pytest.mark.parametrize("templated", [False, True])
def test_the_same_as_json_lines(tmp_path: Path, rows: list[dict[str, Any]], *, templated: bool) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = written(tmp_path / "rows", rows)  # by what it holds, not by its name
    lines = read_documents(tmp_path / "rows.jsonl", chat, templated=templated)
    assert read_documents(file, chat, templated=templated) == lines
    assert len(lines) == len(rows)


def test_a_row_without_text_is_named(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.parquet", [{"text": "w1"}, {"text": None}])
    with pytest.raises(DataError, match="document 1"):
        read_documents(file, chat)
