"""Whose model it is, by where it lies and by the card beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spq_graph.models.provenance import Provenance, provenance
from tests.support.hub import cached

CARD = "---\nlanguage: en\nlicense: apache-2.0\ntags:\n- license: no\n---\n# A model\nlicense: mit\n"


@pytest.mark.parametrize("name", ["org/name", "gpt2", "Qwen/Qwen2.5-0.5B_x", "a-b-c/d.e-f"])
def test_a_folder_of_the_hubs_cache(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = cached(tmp_path, name, {"README.md": CARD, "onnx/model.onnx": "x"})
    expected = Provenance(name, snapshot.name, "apache-2.0")
    assert provenance(snapshot) == expected
    assert provenance(snapshot / "onnx" / "model.onnx") == expected
    monkeypatch.chdir(snapshot.parent)
    assert provenance(Path(snapshot.name)) == expected


@pytest.mark.parametrize(
    "name", ["models--a--b](x", "models--a--b--c", "models--", "datasets--a--b", "models--a---b", "models--a b"]
)
def test_a_name_that_no_id_has(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "snapshots" / "main"
    folder.mkdir(parents=True)
    assert provenance(folder) == Provenance()


@pytest.mark.parametrize(
    ("card", "license", "named"),
    [
        (CARD, "apache-2.0", None),
        ("\ufeff---\r\nlicense: 'mit' \r\n---\r\n", "mit", None),
        ("---\nlicense: other # see below\nlicense_name: llama3.1\n---\n", "other", "llama3.1"),
        ("# A model\nlicense: mit\n", None, None),
        ("---\nlicense:\n- mit\n---\n", None, None),
        ("---\nlicense: mit\n", None, None),
        ("---\nlicense: x" + " " * 60_000 + "y\n---\n", None, None),
    ],
)
def test_what_a_card_calls_the_licence(tmp_path: Path, card: str, license: str | None, named: str | None) -> None:  # noqa: A002
    (tmp_path / "README.md").write_bytes(card.encode())
    assert provenance(tmp_path) == Provenance(license=license, license_name=named)


def test_a_card_that_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "README.md")
    assert provenance(tmp_path) == Provenance()
