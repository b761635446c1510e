"""Refusals of Parquet files, each made and put right as it says."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

from docs.refusals import ROOT
from spq_graph.runtime.text import parquet
from spq_graph.runtime.text.documents import read_documents
from tests.support.following import Told

follows = pytest.mark.follows
arrow = pytest.importorskip("pyarrow", reason="Parquet wants pyarrow")


def table(path: Path, **columns: list[str]) -> Path:
    from pyarrow.parquet import write_table

    write_table(arrow.table(columns), path)
    return path


def documents(path: Path) -> list[str]:
    found = read_documents(path, lambda messages: "")
    assert isinstance(found, list)
    return found


def as_lines(path: Path) -> Path:
    lines = path.with_suffix(".jsonl")
    lines.write_text(json.dumps({"text": "w1"}), encoding="utf-8")
    return lines


@follows("runtime/text/parquet.py:rows_of", "is not installed")
def test_without_pyarrow(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, find = table(tmp_path / "a.parquet", text=["w1"]), importlib.util.find_spec
    with monkeypatch.context() as without:
        without.setattr(parquet, "find_spec", lambda name: find(name) if name != "pyarrow" else None)
        with refusal:
            documents(file)
    extra = refusal.error.remedy.partition("[")[2].partition("]")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any("pyarrow" in one for one in project["optional-dependencies"][extra])
    assert documents(file) == documents(as_lines(file)) == ["w1"]


@follows("runtime/text/parquet.py:rows_of", "no column")
def test_without_a_column_that_is_asked_for(refusal: Told, tmp_path: Path) -> None:
    with refusal:
        documents(table(tmp_path / "a.parquet", body=["w1"], response=["w2"]))
    assert documents(table(tmp_path / "a.parquet", text=["w1"], response=["w2"])) == ["w1"]
    assert documents(as_lines(tmp_path / "a.parquet")) == ["w1"]


@follows("runtime/text/parquet.py:rows_of", "damaged")
def test_cut_short(refusal: Told, tmp_path: Path) -> None:
    file = table(tmp_path / "a.parquet", text=["w1"])
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    with refusal:
        documents(file)
    file.write_bytes(whole)
    assert documents(file) == ["w1"]


@follows("runtime/text/parquet.py:rows_of", "more than 256 MiB")
def test_too_much(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_MOST", 1000)
    with refusal:
        documents(table(tmp_path / "a.parquet", text=["w1 " * 1000]))
    assert documents(table(tmp_path / "a.parquet", text=["w1 "])) == ["w1 "]
