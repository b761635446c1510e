"""Refusals of data sets by name, each made and put right as it says; there is no network."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")

from docs.refusals import ROOT
from spq_graph.runtime.text import named_sets
from spq_graph.workbench.data import data_file
from tests.refusals.conftest import Made
from tests.support.command import done
from tests.support.following import Told
from tests.support.hub_sets import write_set

follows = pytest.mark.follows
sets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None,
    reason="data sets by name want `datasets`: pip install 'spq-graph[data]'",
)
PROSE = " ".join(f"w{n % 60}" for n in range(300))


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(named_sets, "why_unreachable", lambda: "no network")


def calibrating(made: Made, folder: Path, name: str | Path) -> list[object]:
    given = ["--calibration", name, "--tokenizer", made.words, "--window", 32]
    return ["calibrate", made.model, "-o", folder / "ranges.json", *given]


@follows("runtime/text/named_sets.py:fetched", "is not installed")
def test_without_datasets(refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_sets, "find_spec", lambda name: None)
    refusal.command(*calibrating(made, tmp_path, "wikitext-2"))
    extra = refusal.error.remedy.partition("[")[2].partition("]")[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert any(one.startswith("datasets") for one in project["optional-dependencies"][extra])
    done(*calibrating(made, tmp_path, made.prose))


@sets
@follows("runtime/text/named_sets.py:fetched", "cannot be written")
def test_a_cache_that_cannot_be_written(
    refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(monkeypatch, tmp_path, "org/name", {"train": [{"text": PROSE}]})
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refusal.command(*calibrating(made, tmp_path, "hf://datasets/org/name"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "folder"))
    done(*calibrating(made, tmp_path, "hf://datasets/org/name"))


@sets
@follows("runtime/text/named_sets.py:_rows")
def test_a_set_that_is_not_here_and_no_network(
    refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "none")
    refusal.command(*calibrating(made, tmp_path, "c4:1"))
    done(*calibrating(made, tmp_path, made.prose))
    brought = Path(refusal.error.remedy.partition("bring ")[2].partition(",")[0])
    brought.parent.mkdir(parents=True)
    brought.write_text('{"text": "' + PROSE + '"}\n')
    done(*calibrating(made, tmp_path, "c4:1"))


@sets
@follows("runtime/text/named_sets.py:_content")
def test_a_split_without_rows(refusal: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_sets, "_rows", lambda named, asked: [{"text": "w1"}] if named.split == "dev" else [])
    with refusal:
        data_file("hf://datasets/org/name")
    assert data_file("hf://datasets/org/name:dev").is_file()


@sets
@follows("runtime/text/named_sets.py:_require_column")
def test_no_column_that_is_read(refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(monkeypatch, tmp_path, "org/name", {"train": [{"body": PROSE, "n": 1}]})
    refusal.command(*calibrating(made, tmp_path, "hf://datasets/org/name"))
    assert refusal.error.what.endswith("its columns are body, n")
    done(*calibrating(made, tmp_path, "hf://datasets/org/name#body"))


@sets
@follows("runtime/text/named_sets.py:_kept")
def test_a_column_of_numbers(refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(monkeypatch, tmp_path, "org/name", {"train": [{"body": PROSE, "n": 1}]})
    refusal.command(*calibrating(made, tmp_path, "hf://datasets/org/name#n"))
    done(
        *calibrating(
            made, tmp_path, f"hf://datasets/org/name#{refusal.error.remedy.rpartition(': ')[2].split(', ')[0]}"
        )
    )


@sets
@follows("runtime/text/named_sets.py:_refused")
def test_a_split_that_is_not_there(refusal: Told, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(monkeypatch, tmp_path, "org/name", {"train": [{"text": PROSE}]}, "en")
    refusal.command(*calibrating(made, tmp_path, "hf://datasets/org/name/en:dev"))
    assert "Should be one of ['train']" in refusal.error.what
    done(*calibrating(made, tmp_path, "hf://datasets/org/name/en:train"))
